"""The three executions of one definition: simulated and integer agree step by step, on the same inputs."""

import pytest
import torch

from qvit.deployment.conversion import to_integers
from qvit.models.calibration import set_weight_ranges
from qvit.models.floating import Float
from qvit.models.folding import fold
from qvit.models.integer import Integer
from qvit.models.plan import plan_scheme
from qvit.models.simulated import Simulated
from qvit.recipe import Recipe
from qvit_kernels import ops
from qvit_kernels.reference import Quantized
from tests.support import SHAPES, float_vit, images_for

RECIPES = {
    "W8A8": Recipe.preset("qvit", weight_bits=8, activation_bits=8),
    "W4A8": Recipe.preset("qvit", weight_bits=4, activation_bits=8),
    "W4A4": Recipe.preset("qvit", weight_bits=4, activation_bits=4),
    "W3A5 without groups": Recipe.preset("plain", weight_bits=3, activation_bits=5),
    "W4A4, weight groups, bf16 residual": Recipe.preset(
        "qvit", weight_bits=4, activation_bits=4
    ).override(["weights.group=16", "residual=bfloat16"]),
}


class SideBySide:
    """Runs each step in both executions on the simulated one's inputs, and compares what comes out."""

    def __init__(self, simulated, integer):
        partners = dict(integer.named_modules())
        self.partner = {id(m): partners[name] for name, m in simulated.named_modules()}
        self.compared = 0

    def __getattr__(self, step):
        def run(*arguments, **named):
            expected = getattr(Simulated(), step)(*arguments, **named)
            translated = [self._translate(a) for a in arguments]
            found = getattr(Integer(), step)(
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
            assert found.codes.dtype == torch.int8
            off = expected.codes != found.codes.float()
            # after exp, GELU or a LayerNorm sum, one value in 100,000 may be off by one step
            assert off.sum() <= 1e-5 * off.numel(), (
                f"{step}: {off.sum()} of {off.numel()} codes differ"
            )
            torch.testing.assert_close(found.scale, expected.scale, rtol=1e-6, atol=0)
        else:
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def both(vit, recipe):
    scheme = plan_scheme(vit.config, recipe)
    simulated = set_weight_ranges(fold(vit, scheme, seed=0), recipe.weights.range)
    return simulated, to_integers(simulated, scheme)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_integers_equal_simulation_step_by_step(recipe, backend):
    simulated, integer = both(float_vit("three heads"), RECIPES[recipe])
    pair = SideBySide(simulated, integer)
    with torch.inference_mode(), ops.use_backend(backend):
        simulated(images_for(simulated), pair)
    assert pair.compared == 1 + 2 * 9 + 1


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_runs_in_integers(shape):
    simulated, integer = both(float_vit(shape), RECIPES["W4A4"])
    pair = SideBySide(simulated, integer)
    images = images_for(simulated)
    with torch.inference_mode():
        expected = simulated(images, pair)
        found = integer(images, Integer())
    assert found.shape == expected.shape
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_eight_bits_stay_close_to_float(shape):
    vit = float_vit(shape)
    _, integer = both(vit, RECIPES["W8A8"])
    images = images_for(vit, count=8)
    with torch.inference_mode():
        expected, found = vit(images, Float()), integer(images, Integer())
    assert (found - expected).abs().mean() < 0.05 * expected.std()


def test_gradients_reach_every_weight_and_scale():
    simulated, _ = both(float_vit("LayerScale"), RECIPES["W4A4"])
    simulated(images_for(simulated), Simulated()).square().sum().backward()
    for name, parameter in simulated.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_grey_images_meet_no_error_in_the_patch_embedding():
    vit = float_vit()
    simulated, _ = both(vit, RECIPES["W4A4"])
    mean, std = torch.tensor(vit.config.mean), torch.tensor(vit.config.std)
    black = (-mean / std).view(1, -1, 1, 1).expand(1, -1, *vit.config.image_size)
    grey = torch.zeros_like(black)
    with torch.inference_mode():
        errors = [
            (Simulated().embed(x, simulated.patch_embed) - Float().embed(x, vit.patch_embed))
            .abs()
            .max()
            for x in (grey, black)
        ]
    assert errors[0] < 0.1 * errors[1]
