"""Two executions of one model, step by step on the same inputs."""

import torch

from qvit.deployment.conversion import to_integers
from qvit.models.calibration import set_weight_ranges
from qvit.models.folding import fold
from qvit.models.integer import Integer
from qvit.models.plan import plan_scheme
from qvit.models.simulated import Simulated
from qvit.models.vit import ViT
from qvit.recipe import Recipe
from qvit_kernels.packing import unpack_int4
from qvit_kernels.reference import Quantized


def both(vit: ViT, recipe: Recipe) -> tuple[ViT, ViT]:
    """The simulated and the integer model of a recipe."""
    scheme = plan_scheme(vit.config, recipe)
    simulated = set_weight_ranges(fold(vit, scheme, seed=0), recipe.weights.range)
    return simulated, to_integers(simulated, scheme)


class SideBySide:
    """Runs each step in both executions on the simulated one's inputs, and compares what comes out."""

    def __init__(self, simulated, integer, backend=None):
        self.integer = Integer(backend)
        partners = dict(integer.named_modules())
        self.partner = {id(m): partners[name] for name, m in simulated.named_modules()}
        self.compared = 0

    def __getattr__(self, step):
        def run(*arguments, **named):
            expected = getattr(Simulated(), step)(*arguments, **named)
            translated = [self._translate(a) for a in arguments]
            found = getattr(self.integer, step)(
                *translated, **{k: self._translate(v) for k, v in named.items()}
            )
            self._compare(step, expected, found)
            return expected

        return run

    def _translate(self, value):
        if isinstance(value, Quantized):
            return Quantized(value.codes.to(torch.int8), value.scale)
        return self.partner.get(id(value), value)

    def _compare(self, step, expected, found):
        if isinstance(expected, tuple) and not isinstance(expected, Quantized):
            for pair in zip(expected, found, strict=True):
                self._compare(step, *pair)
            return
        self.compared += 1
        if isinstance(expected, Quantized):
            codes = found.codes
            if codes.dtype == torch.uint8:
                codes = unpack_int4(codes, expected.codes.shape[-1])
            assert codes.dtype == torch.int8
            off = expected.codes != codes.float()
            # after exp, GELU or a LayerNorm sum, one value in 100,000 may be off by one step
            assert off.sum() <= 1e-5 * off.numel(), (
                f"{step}: {off.sum()} of {off.numel()} codes differ"
            )
            torch.testing.assert_close(found.scale, expected.scale, rtol=1e-6, atol=0)
        else:
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
