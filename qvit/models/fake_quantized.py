"""The execution to train by: the grids of the simulated one, and products of values in place of products of codes.

What lies on a grid is the same number in both, so that a product here is one call of BLAS whatever its groups, a
transform another, and the backward pass twice as many. Sums are float sums, of what precision torch's matrix products
have: a value that is nearly a tie may round otherwise than in the integers, which are packed from the weights alone. On
a core without AVX-512 a step of 16 images of a ViT-Tiny W4A4 takes 4.2 s, and 12.4 s by the simulated execution.

Rounding and clipping of activations pass gradients straight through. Their scales count as constants, where the
simulated execution also moves the extreme of a row by the errors of all others. Scales of weights are learned.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from qvit.models.dense import Dense
from qvit.models.simulated import Simulated
from qvit.models.vit import Attention, PatchEmbed
from qvit.quant.schemes import Scheme
from qvit_kernels import reference
from qvit_kernels.reference import BlockTransform


class HeadValues(NamedTuple):
    """codes * scale, and the scale, of Q, K or V."""

    values: Tensor
    scale: Tensor


class FakeQuantized(Simulated):
    """Simulated, with a Tensor of values wherever that has a Quantized, and HeadValues for Q, K and V."""

    def embed(self, images: Tensor, embed: PatchEmbed) -> Tensor:
        """See Simulated."""
        codes = reference.quantize_pixels(images, embed.gain, embed.offset)
        return self.product(reference.unfold_patches(codes, embed.patch), embed.proj)

    def attend(self, q: Any, k: Any, v: Any, attn: Attention) -> Tensor:
        """See Simulated."""
        with without_autocast(q.values):
            shares = torch.softmax(q.values @ k.values.transpose(-1, -2) * attn.softmax_scale, -1)
            shares = self.quantize_shares(shares, v.scale, attn)
            return (shares @ v.values).transpose(1, 2).flatten(-2)

    def product(self, x: Any, dense: Dense) -> Tensor:
        """See Simulated."""
        with without_autocast(x):
            return F.linear(x, self.weight_of(dense).values(), dense.bias)

    def quantize_heads(self, x: Tensor, attn: Attention) -> Any:
        """See Simulated."""
        return HeadValues(*_OnHeadGrid.apply(x, attn.scheme.qkv.bits))

    def quantize_shares(self, shares: Tensor, scale: Tensor, attn: Attention) -> Any:
        """Shares of attention [B, H, T, T] on the grid of their row, whose steps are as many times smaller as the scale
        of the token of V, [B, H, T, 1], is larger.
        """
        return _OnSoftmaxGrid.apply(shares, scale, attn.scheme.softmax_bits)

    def quantize(self, x: Tensor, to: Dense) -> Any:
        """See Simulated."""
        return _OnInputGrid.apply(transformed(x, to.transform), to.scheme.input)


def without_autocast(x: Tensor) -> torch.autocast:
    """It would round what is on a grid."""
    return torch.autocast(x.device.type, enabled=False)


def transformed(x: Tensor, transform: BlockTransform | None) -> Tensor:
    """`reference.block_transform` as a product with its matrix."""
    if transform is None:
        return x
    unit = torch.eye(transform.block, dtype=x.dtype, device=x.device)
    signs = transform.signs.new_ones(transform.block)
    matrix = reference.block_transform(unit, BlockTransform(signs, transform.block))
    blocks = (x * transform.signs).unflatten(-1, (-1, transform.block))
    with without_autocast(x):
        return (blocks @ matrix).flatten(-2)


class _StraightThrough(torch.autograd.Function):
    """What is put on a grid keeps its gradient."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], *[None] * (len(ctx.needs_input_grad) - 1)


class _OnInputGrid(_StraightThrough):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scheme: Scheme) -> Tensor:
        found = reference.quantize_rows(x, scheme.bits, scheme.group, prefix=scheme.prefix)
        return found.values()


class _OnHeadGrid(_StraightThrough):
    """Values, and the scales that they are whole multiples of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        found = reference.quantize_heads(x, bits)
        ctx.mark_non_differentiable(found.scale)
        return found.values(), found.scale


class _OnSoftmaxGrid(_StraightThrough):
    @staticmethod
    def forward(ctx: Any, shares: Tensor, scale: Tensor, bits: int) -> Tensor:
        return on_softmax_grid(shares, scale, bits)


def on_softmax_grid(shares: Tensor, scale: Tensor, bits: int) -> Tensor:
    """See FakeQuantized.quantize_shares."""
    scale = scale.transpose(-1, -2)
    weighted = shares * scale
    qmax = reference.softmax_qmax_of(bits)
    step = reference.scale_of(weighted.amax(-1, keepdim=True), qmax)
    return reference.quantize(weighted, step, 0, qmax) * step / scale
