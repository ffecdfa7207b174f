"""The arithmetic of qvit, in plain torch: the definition that every backend executes.

Integers travel here as float tensors that hold whole numbers, so that one text serves three readers: the
simulated model executes it and differentiates through it, the `reference` backend casts its results to int8, and
the kernels are tested against it. Every sum of integer products is exact; every float operation below is one correctly
rounded fp32 operation in the order written (no contraction into fma), except `layer_norm`, `gelu`, `exp2`
and the sum of a softmax row, whose last bit is a backend's own.

    s = max(amax / steps, TINY)       q = clamp(rint(x * (1 / s)), low, high)    rint: half to even
    8 bits: steps = 127, codes -127..127      b < 8: steps = 2^(b-1) + 1/4, codes -2^(b-1)..2^(b-1)-1
    a Linear's input below 8 bits: -s where the largest magnitude is a positive value's, which is code -2^(b-1) then
    w[n,k] = code[n,k] * multiplier[n,g]                                         |w| <= 127, exact integer
    y[m,n] = (sum_g float(acc[m,n,g]) * sx[m,g]) * sw[n] + bias[n]               acc: exact integer
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# The smallest scale. A zero row gets it, so that nothing divides by zero and a zero V row never
# raises the row maximum of the scaled softmax numerators (a scale of 1 there would).
TINY = 2.0**-100

# A float32 sum of integers is exact while it stays below this.
_FLOAT32_EXACT = 2**24

LOG2_E = 1.4426950408889634

# The logit of a masked key. Not -inf: a row of nothing else would have no maximum to subtract.
HIDDEN = -(2.0**30)


class Quantized(NamedTuple):
    """Integer codes with their scales: the value is `codes * scale`, a scale for each group of the last axis.

    codes: [..., K] whole numbers (float carriers here, int8 in the backends); scale: fp32 [..., G], G divides K.
    """

    codes: Tensor
    scale: Tensor

    def values(self) -> Tensor:
        """codes * scale, [..., K]."""
        grouped = self.codes.unflatten(-1, (self.scale.shape[-1], -1))
        return (grouped * self.scale.unsqueeze(-1)).flatten(-2)


class Weight(NamedTuple):
    """The integers of a weight matrix: the value is `codes * multiplier * scale`.

    Two levels of scales, as in QServe (Lin et al. 2024, 4.1): a real one for each output channel, and for each group
    of neighbouring columns a small integer, so that groups cost a product nothing: `codes * multiplier` is an int8.

    codes: [N, K] whole numbers (float carriers here, int8 or packed int4 in the backends); scale: fp32 [N];
    multiplier: whole numbers [N, G], G divides K, |codes * multiplier| <= 127, none zero; None: all one. A negative
    multiplier puts the extra code below zero of a grid at its other end.
    """

    codes: Tensor
    scale: Tensor
    multiplier: Tensor | None = None

    def integers(self) -> Tensor:
        """codes * multiplier, [N, K]."""
        if self.multiplier is None:
            return self.codes
        grouped = self.codes.unflatten(-1, (self.multiplier.shape[-1], -1))
        return (grouped * self.multiplier.unsqueeze(-1)).flatten(-2)

    def values(self) -> Tensor:
        """What the integers stand for, [N, K]."""
        return self.integers() * self.scale.unsqueeze(-1)


class BlockTransform(NamedTuple):
    """A signed orthogonal transform of every `block` neighbouring channels (`block` divides K).

    signs: [K], each +1 or -1, multiplied first. A power of two is a Hadamard matrix; any other block is
    the Kronecker product of the Hadamard matrix of its power-of-two part and the DCT-II of its odd part.
    """

    signs: Tensor
    block: int


class QKNorm(NamedTuple):
    """Parameters of the LayerNorm over each head of Q and of K: fp32 [d] each."""

    q_weight: Tensor
    q_bias: Tensor
    k_weight: Tensor
    k_bias: Tensor
    eps: float


class _Round(torch.autograd.Function):
    """Round half to even; the gradient passes straight through (Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def round_half_even(x: Tensor) -> Tensor:
    """Nearest whole number, ties to even, with a straight-through gradient."""
    return _Round.apply(x) if x.requires_grad else torch.round(x)  # pyright: ignore[reportReturnType]


def code_range(bits: int) -> tuple[int, int]:
    """Smallest and largest signed code: (-8, 7) for 4 bits, (-127, 127) for 8.

    Below 8 bits every code counts: the sixteenth level of a 4-bit grid took the KL of a W4A4 ViT-Tiny on 500
    development images from 0.50 to 0.44. At 8 bits it is not worth the clamp it costs, see `steps_of`.
    """
    high = 2 ** (bits - 1) - 1
    return (-high if bits == 8 else -high - 1), high


def steps_of(bits: int) -> float:
    """Steps from zero to the largest magnitude of a row.

    Below 8 bits a quarter more than the magnitude of the most negative code, on which `signed_scale_of` puts a row's
    extreme: what is cut off there is less than half a step, and all other values gain a finer one. Mean square errors
    of what a ViT-Tiny's Linears read are 0.95 and 0.97 of those with none cut off, at 3 and 4 bits; with half a step
    cut off 0.95 and 0.96. At 8 bits 127, where no value ever rounds out of the range.
    """
    return 127.0 if bits == 8 else 2.0 ** (bits - 1) + 0.25


def largest_multiplier(bits: int) -> int:
    """Largest group multiplier of a weight: 15 for 4 bits, so that every product with a code fits in +-127."""
    return 127 // -code_range(bits)[0]


def softmax_qmax_of(bits: int) -> int:
    """Largest code of the unsigned softmax numerators: 15 for 4 bits; 127 for 8, to fit a signed byte."""
    return min(2**bits - 1, 127)


def scale_of(amax: Tensor, steps: float) -> Tensor:
    """Step of a grid that reaches `amax` after `steps`; at least TINY.

    The divisor is a tensor: torch on CUDA turns division by a Python number into multiplication by its
    reciprocal, which is off by one ulp for a third of the inputs.
    """
    return (amax / torch.full_like(amax, steps)).clamp_min(TINY)


def signed_scale_of(x: Tensor, bits: int) -> Tensor:
    """Scale of each row of x, [..., K] -> [...]; below 8 bits one of either sign, by which the extreme of the row gets
    the code that is alone at its end of the grid.

    Otherwise a positive extreme, that of every other row, would be cut to 7 steps of 8: the mean square errors of what
    a ViT-Tiny's Linears read would be 1.12 and 1.07 times as large, at 3 and 4 bits. The sign is free, in the products
    and in memory.
    """
    low, high = x.aminmax(dim=-1)
    scale = scale_of(torch.maximum(high, -low), steps_of(bits))
    return scale if bits == 8 else torch.where(high > -low, -scale, scale)


def quantize(x: Tensor, scale: Tensor, low: int | Tensor, high: int | Tensor) -> Tensor:
    """Codes of `x` on the grid of step `scale` (broadcast against x), saturating at `low` and `high`, which may be
    tensors that broadcast likewise.

    By the reciprocal: one division a row and not one a value. A kernel spends a multiplication on a value then, where
    a correctly rounded division is ten instructions and a branch. At 8 bits |x| <= 127 * s * (1 + 2^-22) still
    rounds to at most 127. The bounds are whole, so clamping first gives the same codes; it also leaves a gradient to
    every value that rounds to an extreme code, which torch 2.15 gives nothing that lies on a bound: it took most of the
    softmax's numerators, whose code is 0, out of training.
    """
    return round_half_even((x * scale.reciprocal()).clamp(low, high))  # pyright: ignore[reportCallIssue, reportArgumentType]


def quantize_rows(
    x: Tensor, bits: int, group: int = 0, static_scale: Tensor | None = None, prefix: int = 0
) -> Quantized:
    """Quantization of a Linear's input: of each row, or of each `group` neighbouring values of a row, by their own
    scale (`signed_scale_of`), or by one that is given for all rows, which saturates what lies beyond its codes.

    x: float [..., K], with a prefix [..., T, K]: the first `prefix` rows of every T, an image's class, distillation and
    register tokens, have 8 bits, and no static scale; static_scale: fp32 [1, K / group], positive, or None. Returns
    codes [..., K], scale [..., K / group] (group 0: one scale a row), or the static one as it is.
    """
    if prefix:
        first, others = x[..., :prefix, :], x[..., prefix:, :]
        parts = quantize_rows(first, 8, group), quantize_rows(others, bits, group)
        codes, scale = (torch.cat(found, -2) for found in zip(*parts, strict=True))
        return Quantized(codes, scale)
    grouped = x.float().unflatten(-1, (-1, group or x.shape[-1]))
    if static_scale is None:
        scale = signed_scale_of(grouped, bits)
    else:
        scale = static_scale
    codes = quantize(grouped, scale.unsqueeze(-1), *code_range(bits))
    return Quantized(codes.flatten(-2), scale)


def quantize_heads(x: Tensor, bits: int) -> Quantized:
    """Quantization of Q, K or V: of each token of each head, [..., d], by a positive scale.

    V's scales join the numerators of a softmax, whose codes have no sign.
    """
    scale = scale_of(x.abs().amax(-1, keepdim=True), steps_of(bits))
    return Quantized(quantize(x, scale, *code_range(bits)), scale)


def integer_matmul(a: Tensor, b: Tensor, bound: int = 127 * 127) -> Tensor:
    """float(a @ b^T) with an exact integer sum. a: [..., M, K], b: [..., N, K]; |a * b| <= bound each.

    fp32 while no partial sum can reach 2^24 (whatever matmul precision is set: codes fit bf16 and tf32),
    else fp64, rounded to fp32 once, as the conversion of an int32 accumulator is.
    """
    device = a.device.type
    if torch.is_autocast_enabled(device):  # would return the sums in bf16
        with torch.autocast(device, enabled=False):
            return integer_matmul(a, b, bound)
    if a.shape[-1] * bound < _FLOAT32_EXACT:
        return a @ b.transpose(-1, -2)
    return (a.double() @ b.double().transpose(-1, -2)).float()


def linear(
    x: Quantized, weight: Weight, bias: Tensor | None = None, bound: int = 127 * 127
) -> Tensor:
    """Integer matrix product with rescaling.

    x: codes [..., K], scale [..., G] (or [1, G], static); weight: [N, K]; bias: fp32 [N]. Each partial sum over a
    group of x takes that group's scale; the finished sum takes the weight's. Returns fp32 [..., N].
    """
    groups = x.scale.shape[-1]
    total = None
    for g, (codes, integers) in enumerate(
        zip(x.codes.chunk(groups, -1), weight.integers().chunk(groups, -1), strict=True)
    ):
        part = integer_matmul(codes, integers, bound) * x.scale[..., g, None]
        total = part if total is None else total + part
    assert total is not None
    total = total * weight.scale
    return total if bias is None else total + bias


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis in fp32, whatever the dtype of the residual stream."""
    return F.layer_norm(x.float(), weight.shape, weight, bias, eps)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """GELU by erf ("none") or by tanh ("tanh"), as the float model has it."""
    return F.gelu(x, approximate=approximate)


def block_transform(x: Tensor, transform: BlockTransform | None) -> Tensor:
    """Apply a signed orthogonal block transform to the last axis; None leaves x as it is.

    Orthogonal, so that applied to the rows of the next weight it undoes itself: (T x) . (T w) = x . w.
    The butterfly's additions have one order, so every backend can produce the same bits.
    """
    if transform is None:
        return x
    odd, power = _odd_part(transform.block)
    y = (x * transform.signs).unflatten(-1, (-1, power, odd))
    if odd > 1:
        matrix = _dct(odd).to(x)
        y = _ordered_product(y, matrix)
    step = 1
    while step < power:
        y = y.unflatten(-2, (-1, 2, step))
        low, high = y.unbind(-3)
        y = torch.stack((low + high, low - high), dim=-3).flatten(-4, -2)
        step *= 2
    return (y * (1.0 / math.sqrt(power))).flatten(-3)


def _odd_part(block: int) -> tuple[int, int]:
    power = block & -block
    return block // power, power


@lru_cache(maxsize=32)
def _dct(size: int) -> Tensor:
    """Orthonormal DCT-II, [size, size], rows are basis vectors."""
    with torch.inference_mode(False), torch.device("cpu"):  # it is kept, and may be trained through
        n = torch.arange(size, dtype=torch.float64)
        matrix = torch.cos(math.pi / size * torch.outer(n, n + 0.5)) * math.sqrt(2.0 / size)
        matrix[0] /= math.sqrt(2.0)
        return matrix.to(torch.float32)


def _ordered_product(x: Tensor, matrix: Tensor) -> Tensor:
    """x @ matrix^T, the terms of each sum added one after the other."""
    total = x[..., :1] * matrix[:, 0]
    for j in range(1, x.shape[-1]):
        total = total + x[..., j : j + 1] * matrix[:, j]
    return total


def split_heads(y: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, T, 3*H*d] -> Q, K, V, each [B, H, T, d]."""
    q, k, v = y.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def normalize_heads(
    q: Tensor, k: Tensor, norm: QKNorm, transform: BlockTransform | None
) -> tuple[Tensor, Tensor]:
    """LayerNorm over each head of Q and K, then the rotation, which cannot be folded through a norm."""
    q = layer_norm(q, norm.q_weight, norm.q_bias, norm.eps)
    k = layer_norm(k, norm.k_weight, norm.k_bias, norm.eps)
    return block_transform(q, transform), block_transform(k, transform)


def attention(
    q: Quantized,
    k: Quantized,
    v: Quantized,
    *,
    softmax_scale: float,
    softmax_bits: int,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    bound: int = 127 * 127,
) -> Tensor:
    """Quantized softmax attention. q, k, v: codes [B, H, T, d], scale [B, H, T, 1]; returns fp32 [B, T, H*d].

    The softmax is exact over the row. V has a scale per token, so it joins the numerators before they are
    quantized with one scale a row; the divisor is the fp32 sum of the unquantized numerators.

    bias: fp32 [b, h, T, T], added to the scaled logits; mask: bool [b, h, T, T], False where a key is not to be seen
    (a row that sees nothing sees everything alike). b divides B, image i takes row i % b; h is 1 or H.
    """
    logits = integer_matmul(q.codes, k.codes, bound)
    logits = logits * (q.scale * (softmax_scale * LOG2_E)) * k.scale.transpose(-1, -2)
    batch = logits.shape[0]
    if bias is not None:
        logits = logits + (bias * LOG2_E).repeat(batch // bias.shape[0], 1, 1, 1)
    if mask is not None:
        hidden = ~mask.repeat(batch // mask.shape[0], 1, 1, 1)
        logits = logits.masked_fill(hidden, HIDDEN)
    numerators = torch.exp2(logits - logits.amax(-1, keepdim=True))
    divisor = numerators.sum(-1, keepdim=True)
    weighted = numerators * v.scale.transpose(-1, -2)
    qmax = softmax_qmax_of(softmax_bits)
    row_scale = scale_of(weighted.amax(-1, keepdim=True), qmax)
    codes = quantize(weighted, row_scale, 0, qmax)
    out = integer_matmul(codes, v.codes.transpose(-1, -2), bound) * (row_scale / divisor)
    return out.transpose(1, 2).flatten(-2)


def quantize_pixels(images: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """Signed 8-bit codes of normalised images: rint(x * gain + offset), the inverse of the normalisation.

    images: float [B, C, H, W], normalised; gain, offset: fp32 [C], 255 * std and 255 * mean - 128. An image that
    came from 8-bit pixels loses nothing. Returns codes [B, C, H, W] in -128..127.
    """
    shape = (1, -1, 1, 1)
    return round_half_even((images * gain.view(shape) + offset.view(shape)).clamp(-128, 127))


def place_tokens(patches: Tensor, prefix: Tensor | None, positions: Tensor | None) -> Tensor:
    """Tokens [B, n + P, D] of patches [B, P, D]: prefix tokens [n, D] before those of each image, then positions added,
    [n + P, D], or [P, D] for patches alone.
    """
    if positions is not None and positions.shape[0] == patches.shape[1]:
        patches, positions = patches + positions, None
    if prefix is not None:
        patches = torch.cat([prefix.expand(patches.shape[0], -1, -1), patches], dim=1)
    return patches if positions is None else patches + positions


def unfold_patches(images: Tensor, patch: tuple[int, int]) -> Tensor:
    """[B, C, H, W] -> [B, (H//ph)*(W//pw), C*ph*pw], columns in the order of a convolution weight.

    Pixels beyond the last whole patch are left out, as by a convolution of that stride.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch[0], width // patch[1]
    whole = images[:, :, : rows * patch[0], : columns * patch[1]]
    tiles = whole.reshape(batch, channels, rows, patch[0], columns, patch[1])
    values = channels * patch[0] * patch[1]
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, values)
