"""A simulated model whose layers change their bits: every width has scales of its own (Q-ViT's switchable scale)."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from qvit.models.calibration import center_pixels
from qvit.models.dense import Dense
from qvit.models.vit import Attention, ViT
from qvit.quant.ranges import Grid, weight_grid
from qvit.quant.schemes import LinearScheme, ModelScheme


class Widths(NamedTuple):
    """Of one Linear, by bits: what quantizes its weight and its input."""

    schemes: Mapping[int, LinearScheme]
    grids: Mapping[int, Grid]


class SwitchableModel:
    """A folded ViT that takes any allocation of bits; `vit` is changed in place, and its parameters are frozen.

    vit: As `fold` leaves it, without ranges. schemes: Of every width, where the whole model has it. method: Of the
    ranges of weights, as a recipe's.
    """

    def __init__(self, vit: ViT, schemes: Mapping[int, ModelScheme], method: str) -> None:
        self.vit = vit.requires_grad_(False)
        self.widths: dict[str, Widths] = {}
        for name, module in vit.named_modules():
            if not isinstance(module, Dense):
                continue
            linears = {bits: scheme.linears[name] for bits, scheme in schemes.items()}
            grids = {
                bits: weight_grid(module.weight, bits, linear.weight.group, method)
                for bits, linear in linears.items()
            }
            self.widths[name] = Widths(linears, grids)
        self._centred = {bits: self._center(bits) for bits in schemes}

    def _center(self, bits: int) -> Tensor:
        """The bias of the patch embedding that belongs to a width, fp32 [N]."""
        embed = self.vit.patch_embed
        before = embed.proj.bias.data
        embed.proj.bias.data = before.clone()
        self._switch("patch_embed.proj", embed.proj, bits)
        center_pixels(embed)
        found, embed.proj.bias.data = embed.proj.bias.data, before
        return found

    def _switch(self, name: str, dense: Dense, bits: int) -> None:
        """Give a Linear the weights of a width."""
        widths = self.widths[name]
        assert dense.weight_scale is not None
        dense.weight_scale.data = widths.grids[bits].scale
        dense.weight_multiplier = widths.grids[bits].multiplier
        dense.scheme = widths.schemes[bits]

    def take(self, scheme: ModelScheme) -> None:
        """Go on with the bits of this scheme; groups and transforms have to be those it was made with."""
        for name, module in self.vit.named_modules():
            if isinstance(module, Dense):
                linear = scheme.linears[name]
                self._switch(name, module, linear.weight.bits)
                module.scheme = linear
            elif isinstance(module, Attention):
                module.scheme = scheme.attentions[name]
        proj = self.vit.patch_embed.proj
        proj.bias.data = self._centred[proj.scheme.weight.bits]
