"""ViTs as students: qvit's own scheme, whose result can be packed, and the static one of publications."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qvit.models.dense import Dense
from qvit.models.folding import per_column
from qvit.models.static import StaticDense
from qvit.models.student import IntegerWeight, Seen, Student
from qvit.models.vit import PatchEmbed, ViT
from qvit.models.watching import WatchedFakeQuantized, WatchedSimulated, WatchedStatic, watch
from qvit.quant.schemes import Scheme
from qvit.quant.slices import split_slices
from qvit.quant.static_activations import observe_ranges


class SimulatedStudent(Student):
    """A folded ViT under qvit's dynamic scheme, from `fold` and `set_weight_ranges`.

    Weights, their scales, biases, norms, tokens and position embeddings are trained; the integer multipliers of weight
    groups stay. `vit` is what conversion to integers takes afterwards.
    """

    def __init__(self, vit: ViT) -> None:
        super().__init__()
        self.vit = vit
        for module in vit.modules():
            if isinstance(module, Dense) and module.weight_scale is not None:
                module.weight_scale.register_hook(_times(_scale_factor(module)))
        self._slow_pixels(vit.patch_embed)

    def _slow_pixels(self, embed: PatchEmbed) -> None:
        """Steps of the patch embedding as they would be for normalised pixels.

        Its inputs are codes, `gain` times as large, and its weights as many times smaller: without this factor of
        1 / gain^2 one step of a usual rate moves them by many times their length, and the model is gone.
        """
        factor = per_column(embed.gain, embed).square().reciprocal()
        embed.proj.weight.register_hook(_times(factor))
        embed.proj.weight_scale.register_hook(_times(factor.mean()))

    def forward(self, images: Tensor) -> Seen:
        """See Student. With gradients by values (fake_quantized.py), without them in the integers of the reference."""
        run = WatchedFakeQuantized() if torch.is_grad_enabled() else WatchedSimulated()
        return watch(self.vit, images, run)

    def integer_weights(self) -> Sequence[IntegerWeight]:
        """See Student."""
        return [
            IntegerWeight(f"vit.{name}.weight", module.weight, module.codes_of)
            for name, module in self.vit.named_modules()
            if isinstance(module, Dense)
        ]


class StaticStudent(Student):
    """A ViT from `with_static_quantizers`. Everything is trained, learned steps and zero points among it."""

    def __init__(self, vit: ViT) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: Tensor) -> Seen:
        """See Student."""
        return watch(self.vit, images, WatchedStatic())

    def integer_weights(self) -> Sequence[IntegerWeight]:
        """See Student."""
        return [
            IntegerWeight(f"vit.{name}.weight", module.weight, module.quantizer.codes)
            for name, module in self.vit.named_modules()
            if isinstance(module, StaticDense)
        ]

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> None:
        """See Student. Called again, ranges widen, move on or stay, by their kind."""
        observe_ranges(self.vit, True)
        try:
            self(images)
        finally:
            observe_ranges(self.vit, False)


def _scale_factor(dense: Dense) -> Tensor:
    """LSQ's factor 1 / sqrt(weights a scale * largest code) on a scale's gradient (Esser et al. 2020): fp32 [1], or [N]
    where rows differ in their bits. Where columns do, it goes by the mean of their largest codes.

    It makes a step move a scale by about the share by which it moves the weights. The integer multipliers of groups
    make the gradient as many times larger, and the scale as many times smaller: their mean square is divided out, too.
    """
    largest = torch.atleast_3d(torch.as_tensor(dense.limits()[1])).double().mean((1, 2))
    factor = (dense.weight.shape[1] * largest).rsqrt()
    if dense.weight_multiplier is not None:
        factor = factor / _mean_square(dense.weight_multiplier, dense.scheme.weight).double()
    return factor.float()


def _mean_square(multiplier: Tensor, weight: Scheme) -> Tensor:
    """Of the multipliers [N, G] that count for a row: [1], or [N] where rows differ in their bits."""
    if not weight.rows:
        return multiplier.square().mean().unsqueeze(0)
    parts = split_slices(multiplier, weight)
    return torch.cat([part.square().mean().expand(len(part)) for part in parts])


def _times(factor: Tensor) -> Callable[[Tensor], Tensor]:
    """A hook that multiplies a gradient."""
    return lambda gradient: gradient * factor.to(gradient.device)
