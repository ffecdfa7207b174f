"""A simulated model whose layers change their bits: every width has scales of its own (Q-ViT's switchable scale)."""

from collections.abc import Mapping

from qvit.models.calibration import center_pixels
from qvit.models.dense import Dense
from qvit.models.vit import Attention, ViT
from qvit.quant.ranges import Grid, weight_grid
from qvit.quant.schemes import LinearScheme, ModelScheme, Scheme

# What allocations are compared by may be 1 or 2 % coarser than what is written (see weight_grid).
_STRIDE = 4


class SwitchableModel:
    """A folded ViT that takes any allocation of bits; `vit` is changed in place, and its parameters are frozen.

    vit: As `fold` leaves it, without ranges. schemes: Of every width, where the whole model has it. method: Of the
    ranges of weights, as a recipe's; they are found when first asked for. stride: As `weight_grid` has it.
    """

    def __init__(
        self, vit: ViT, schemes: Mapping[int, ModelScheme], method: str, *, stride: int = _STRIDE
    ) -> None:
        self.vit = vit.requires_grad_(False)
        self._method, self._stride = method, stride
        self._schemes = dict(schemes)
        self._linears = {n: m for n, m in vit.named_modules() if isinstance(m, Dense)}
        self._weights = {n: m.weight.detach().clone() for n, m in self._linears.items()}
        self._grids: dict[tuple[str, Scheme], Grid] = {}
        self._bias = vit.patch_embed.proj.bias.data.clone()

    @property
    def bits(self) -> tuple[int, ...]:
        """The widths."""
        return tuple(self._schemes)

    def scheme(self, name: str, bits: int) -> LinearScheme:
        """What quantizes weight and input of a Linear at a width."""
        return self._schemes[bits].linears[name]

    def grid(self, name: str, bits: int) -> Grid:
        """The steps of a Linear's weight at a width."""
        return self.grid_of(name, self.scheme(name, bits).weight)

    def grid_of(self, name: str, scheme: Scheme) -> Grid:
        """The same by its weight's scheme, which may have bits for every head."""
        if (name, scheme) not in self._grids:
            weight = self._weights[name]  # not what may have been trained from it since
            self._grids[name, scheme] = weight_grid(weight, scheme, self._method, self._stride)
        return self._grids[name, scheme]

    def follow(self, scheme: ModelScheme) -> None:
        """Give this scheme to all layers, and leave their grids as they are."""
        for name, dense in self._linears.items():
            dense.scheme = scheme.linears[name]
        for name, module in self.vit.named_modules():
            if isinstance(module, Attention):
                module.scheme = scheme.attentions[name]

    def take(self, scheme: ModelScheme) -> None:
        """Go on with the bits of this scheme; groups and transforms have to be those it was made with."""
        self.follow(scheme)
        for name, dense in self._linears.items():
            assert dense.weight_scale is not None
            grid = self.grid_of(name, dense.scheme.weight)
            dense.weight_scale.data, dense.weight_multiplier = grid
        self.restore()
        center_pixels(self.vit.patch_embed)

    def restore(self) -> None:
        """Give the patch embedding the bias of the float model again, which `take` changes by its weight's rounding."""
        self.vit.patch_embed.proj.bias.data = self._bias.clone()
