"""A model whose bit-widths are trained with its weights, each width with a scale of its own (Q-ViT, Li et al. 2022)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvit.models.calibration import pixel_shift
from qvit.models.curvature import Key
from qvit.models.dense import Dense
from qvit.models.fake_quantized import (
    FakeQuantized,
    HeadValues,
    on_softmax_grid,
    transformed,
    without_autocast,
)
from qvit.models.student import Seen
from qvit.models.switching import SwitchableModel
from qvit.models.vit import Attention, PatchEmbed
from qvit.models.watching import Watching, watch
from qvit.quant import learned_bits
from qvit.quant.ranges import Grid
from qvit.quant.schemes import ModelScheme
from qvit.quant.slices import quantize_weight
from qvit.recipe import MAX_BITS, MIN_BITS
from qvit_kernels import reference
from qvit_kernels.reference import Weight

# Whole numbers; modules that are not there keep what their scheme says.
Widths = Mapping[nn.Module, Tensor]


class LearnedBits(FakeQuantized):
    """FakeQuantized, with a gradient of widths, and weights on the grid of the width that they have now.

    weights: Of Linears, of the whole weight [1] or of every head's slice [slices]; inputs: of Linears, and of
    attentions, those of Q, K, V and the softmax numerators, [].
    """

    def __init__(self, student: "BitsStudent", weights: Widths, inputs: Widths) -> None:
        self._student, self._weights, self._inputs = student, weights, inputs

    def embed(self, images: Tensor, embed: PatchEmbed) -> Tensor:
        """See Simulated. The offset of the pixels goes through the float weight, as after `center_pixels`."""
        codes = reference.quantize_pixels(images, embed.gain, embed.offset)
        patches = reference.unfold_patches(codes, embed.patch)
        weight = self.weight_of(embed.proj).values()
        bias = embed.proj.bias + pixel_shift(embed, weight)
        with without_autocast(patches):
            return F.linear(patches, weight, bias)

    def weight_of(self, dense: Dense) -> Weight:
        """See Simulated."""
        grid = self._student.grid(dense)
        if dense in self._weights:
            bits, rows = self._weights[dense], self._student.slices_are_rows(dense)
            codes = learned_bits.weight_codes(dense.weight, grid.steps(), bits, rows=rows)
        else:
            codes = quantize_weight(dense.weight, grid.steps(), dense.scheme.weight)
        return Weight(codes, *grid)

    def quantize(self, x: Tensor, to: Dense) -> Any:
        """See Simulated."""
        if to not in self._inputs:
            return super().quantize(x, to)
        x = transformed(x, to.transform)
        return learned_bits.quantize_input(x, self._inputs[to], to.scheme.input)

    def quantize_heads(self, x: Tensor, attn: Attention) -> Any:
        """See Simulated."""
        if attn not in self._inputs:
            return super().quantize_heads(x, attn)
        return HeadValues(*learned_bits.quantize_heads(x, self._inputs[attn]))

    def quantize_shares(self, shares: Tensor, scale: Tensor, attn: Attention) -> Any:
        """See FakeQuantized."""
        if attn not in self._inputs:
            return super().quantize_shares(shares, scale, attn)
        with torch.no_grad():
            found = on_softmax_grid(shares, scale, attn.scheme.softmax_bits)
        return learned_bits.quantize_shares(shares, found, self._inputs[attn])


class WatchedLearnedBits(Watching, LearnedBits):
    """LearnedBits, watched."""

    def __init__(self, student: "BitsStudent", weights: Widths, inputs: Widths) -> None:
        Watching.__init__(self)
        LearnedBits.__init__(self, student, weights, inputs)


class BitsStudent(nn.Module):
    """A folded ViT with its bit-widths among its parameters, which maps images to a Seen.

    Attributes:
        vit: Weights, biases, norms and tokens are trained, in place.
        bits: fp32 [choices], from 2 to 8 where `clamp` was called since they moved.
        growth: For every Linear [7, N]: the logarithm of what each width's scales have grown by, zeros at first. In
            these units an optimiser that divides gradients by their size moves a scale by about the share by which it
            moves a weight, as LSQ's factor on the gradient has it for one that does not. Heads of a projection share
            the scale of a row, that of the most bits among them.
    """

    def __init__(self, model: SwitchableModel, choices: Sequence[Key], bits: Tensor) -> None:
        """choices: Of every entry of `bits`, a layer and "W", its weights, or "A", its input or its operands; those
        of a head's weights have the number of its slice, too, and come in its order.
        """
        super().__init__()
        self.vit = model.vit.requires_grad_(True)
        self.bits = nn.Parameter(bits.float())
        self._model = model
        named = dict(self.vit.named_modules())
        self._chosen = [(named[key[0]], key[1]) for key in choices]
        linears = {module: name for name, module in named.items() if isinstance(module, Dense)}
        for dense in linears:
            assert dense.weight_scale is not None
            dense.weight_scale.requires_grad_(False)  # that of no width: see `grid`
        widths = MAX_BITS - MIN_BITS + 1
        self.growth = nn.ParameterList(torch.zeros(widths, len(dense.weight)) for dense in linears)
        self._tables: dict[Any, tuple[str, nn.Parameter]] = {
            dense: (name, growth)
            for (dense, name), growth in zip(linears.items(), self.growth, strict=True)
        }

    def whole_bits(self) -> Tensor:
        """The widths in use, int64 [choices]."""
        return self.bits.detach().round().long()

    @torch.no_grad()
    def clamp(self) -> None:
        """Put widths between 2 and 8; in the data, so that no gradient is lost."""
        self.bits.clamp_(MIN_BITS, MAX_BITS)

    def take(self, scheme: ModelScheme) -> None:
        """Go on with groups and transforms of this scheme, which has the widths in use."""
        self._model.follow(scheme)

    def slices_are_rows(self, dense: Dense) -> bool:
        """Whether heads have rows of its weight, and not columns."""
        return self.vit.config.head_slices(self._tables[dense][0])[0] > 1

    def grid(self, dense: Dense) -> Grid:
        """The learned scales and the multipliers of a Linear at its width, or at those of its heads. A width's scales
        begin where they are best for the float weights.
        """
        name, growth = self._tables[dense]
        scheme = dense.scheme.weight
        with torch.no_grad():
            scale, multiplier = self._model.grid_of(name, scheme)
        widths = torch.tensor(scheme.rows or (scheme.bits,), device=scale.device) - MIN_BITS
        grown = growth.gather(0, widths.repeat_interleave(len(scale) // len(widths)).unsqueeze(0))
        return Grid(scale * grown.squeeze(0).exp(), multiplier)

    def forward(self, images: Tensor) -> Seen:
        """images: normalised [B, C, H, W]."""
        of: dict[str, dict[nn.Module, list[Tensor]]] = {"W": {}, "A": {}}
        for (module, kind), bits in zip(self._chosen, self.bits, strict=True):
            of[kind].setdefault(module, []).append(reference.round_half_even(bits))
        weights = {module: torch.stack(bits) for module, bits in of["W"].items()}
        inputs = {module: bits for module, (bits,) in of["A"].items()}
        return watch(self.vit, images, WatchedLearnedBits(self, weights, inputs))
