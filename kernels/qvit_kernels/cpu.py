"""The `cpu` backend: the integers of `composed`, in blocks of rows that stay in the cache.

The matrix products are int8 (`integer_matmul`). What remains is memory traffic, so every op takes a
few megabytes of rows at a time, writes the int32 sums into one buffer, and rescales, activates and
quantizes there in place, in the order of operations of `reference`. Three steps are left out
because they change nothing here: |x| is max(max x, -min x); a dynamic 8-bit scale never needs
the clamp, since |x| <= 127 * s * (1 + 2^-23) rounds to at most 127; and int8 weights need no preparation.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from qvit_kernels import composed, reference
from qvit_kernels.cpu_rows import Rows, divide_by_scale
from qvit_kernels.integer_matmul import int8_matmul_is_exact, int8_weight, multiply
from qvit_kernels.packing import unpack_int4
from qvit_kernels.reference import QKNorm
from qvit_kernels.scratch import scratch
from qvit_kernels.storage import empty_values

__all__ = [
    "attention",
    "int8_matmul_is_exact",
    "layernorm_quantize",
    "linear",
    "linear_embed",
    "linear_gelu_quantize",
    "linear_qkv",
    "linear_residual",
    "quantize_pixels",
    "quantize_rows",
]

# Values of an fp32 intermediate that a thread handles at a time: 2 MiB. DeiT-S at batch 8 on two cores of 1 MiB L2 each
# took 1.10 times as long with half as much (a torch call is a fork and a join), 1.02 times with three times as much.
_BLOCK = 512 * 1024


def quantize_pixels(
    images: Tensor, gain: Tensor, offset: Tensor, height: int, width: int
) -> Tensor:
    """Codes of the pixels, an image at a time."""
    batch, channels, rows, columns = images.shape
    tokens = (rows // height) * (columns // width)
    out = torch.empty((batch, tokens, channels * height * width), dtype=torch.int8)
    for image, codes in zip(images.split(1), out.split(1), strict=True):
        codes.copy_(composed.quantize_pixels(image, gain, offset, height, width))
    return out


def layernorm_quantize(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    signs: Tensor | None,
    block: int,
    bits: int,
    group: int,
    packed: bool,
    static_scale: Tensor | None = None,
    prefix: int = 0,
) -> tuple[Tensor, Tensor]:
    """LayerNorm, block transform, quantization."""
    rows = x.reshape(-1, x.shape[-1])
    sink = Rows(x.shape, bits, group, signs, block, packed, static_scale, prefix)
    for span in _spans(rows.shape[0], x.shape[-1]):
        sink.write(span, reference.layer_norm(rows[span], weight, bias, eps))
    return sink.result()


def quantize_rows(
    x: Tensor,
    signs: Tensor | None,
    block: int,
    bits: int,
    group: int,
    packed: bool,
    static_scale: Tensor | None = None,
    prefix: int = 0,
) -> tuple[Tensor, Tensor]:
    """Block transform, quantization."""
    rows = x.reshape(-1, x.shape[-1])
    sink = Rows(x.shape, bits, group, signs, block, packed, static_scale, prefix)
    for span in _spans(rows.shape[0], x.shape[-1]):
        sink.write(span, rows[span].to(torch.float32, copy=True))
    return sink.result()


def linear(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    multiplier: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Matrix product with rescaling."""
    out = torch.empty((*x.shape[:-1], w.shape[0]), dtype=torch.float32)
    rows = out.view(-1, w.shape[0])
    product = _Product(x, x_scale, w, w_scale, multiplier, bias)
    for span in _spans(rows.shape[0], w.shape[0]):
        product.write(span, rows[span])
    return out


linear_embed = composed.embedding_of(linear)


def linear_residual(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    multiplier: Tensor | None,
    bias: Tensor | None,
    residual: Tensor,
) -> Tensor:
    """Matrix product with rescaling, added to the residual stream."""
    out = torch.empty(residual.shape, dtype=residual.dtype)
    rows = out.view(-1, w.shape[0])
    stream = residual.reshape(rows.shape)
    product = _Product(x, x_scale, w, w_scale, multiplier, bias)
    if out.dtype == torch.float32:
        for span in _spans(rows.shape[0], w.shape[0]):
            product.write(span, rows[span]).add_(stream[span])
    else:
        for span, y in product.blocks():
            rows[span] = y.add_(stream[span].float())
    return out


def linear_gelu_quantize(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    multiplier: Tensor | None,
    bias: Tensor | None,
    approximate: str,
    signs: Tensor | None,
    block: int,
    bits: int,
    group: int,
    packed: bool,
    static_scale: Tensor | None = None,
    prefix: int = 0,
) -> tuple[Tensor, Tensor]:
    """Matrix product, GELU, block transform, quantization."""
    shape = (*x.shape[:-1], w.shape[0])
    sink = Rows(shape, bits, group, signs, block, packed, static_scale, prefix)
    for span, y in _Product(x, x_scale, w, w_scale, multiplier, bias).blocks():
        sink.write(span, torch.ops.aten.gelu_.default(y, approximate=approximate))
    return sink.result()


def linear_qkv(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    multiplier: Tensor | None,
    bias: Tensor | None,
    heads: int,
    bits: int,
    norm: list[Tensor],
    eps: float,
    signs: Tensor | None,
    block: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Matrix product, split by head, each token of each head quantized."""
    batch, tokens, _ = x.shape
    width = w.shape[0] // (3 * heads)
    codes = torch.empty((batch * tokens, 3 * heads, width), dtype=torch.int8)
    scale = torch.empty((batch * tokens, 3 * heads), dtype=torch.float32)
    for span, y in _Product(x, x_scale, w, w_scale, multiplier, bias).blocks():
        parts = y.view(-1, 3 * heads, width)
        if norm:
            q, k = reference.normalize_heads(
                parts[:, :heads],
                parts[:, heads : 2 * heads],
                QKNorm(norm[0], norm[1], norm[2], norm[3], eps),
                composed.transform_of(signs, block),
            )
            parts[:, :heads], parts[:, heads : 2 * heads] = q, k
        scale[span] = divide_by_scale(parts, bits, signed=False)
        codes[span] = parts
    q, k, v = codes.view(batch, tokens, 3, heads, width).transpose(1, 3).unbind(2)
    q_scale, k_scale, v_scale = (
        part.clone(memory_format=torch.contiguous_format)
        for part in scale.view(batch, tokens, 3, heads, 1).transpose(1, 3).unbind(2)
    )
    values = empty_values((batch, heads, tokens, width), x.device).copy_(v)
    q, k = (part.clone(memory_format=torch.contiguous_format) for part in (q, k))
    return q, q_scale, k, k_scale, values, v_scale


def attention(
    q: Tensor,
    q_scale: Tensor,
    k: Tensor,
    k_scale: Tensor,
    v: Tensor,
    v_scale: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    softmax_scale: float,
    softmax_bits: int,
    bits: int,
    group: int,
    packed: bool,
    static_scale: Tensor | None = None,
    prefix: int = 0,
) -> tuple[Tensor, Tensor]:
    """Softmax attention of some images, or some heads of one, at a time, its output quantized."""
    if bias is not None or mask is not None:
        arguments = (bias, mask, softmax_scale, softmax_bits, bits, group, packed, static_scale)
        return composed.attention(q, q_scale, k, k_scale, v, v_scale, *arguments, prefix)
    batch, heads, tokens, width = q.shape
    shape = (batch, tokens, heads * width)
    sink = Rows(shape, bits, group, None, 0, packed, static_scale, prefix)
    if not q.numel():
        return sink.result()
    codes = (q, k.transpose(-1, -2), v)
    factor = q_scale * (softmax_scale * reference.LOG2_E)
    scales = (factor, k_scale.transpose(-1, -2), v_scale.transpose(-1, -2))
    qmax = reference.softmax_qmax_of(softmax_bits)
    for images in _spans(batch, heads * tokens * tokens):
        count = images.stop - images.start
        rows = scratch("attention", (count, tokens, heads, width))
        for part in _spans(heads, count * tokens * tokens):
            of_images = [t[images, part].flatten(0, 1) for t in codes + scales]
            sums, ratio = _attend(of_images[:3], of_images[3:], qmax)
            shape = (count, part.stop - part.start, tokens)
            out = rows[:, :, part].transpose(1, 2)
            torch.mul(sums.view(*shape, width), ratio.view(*shape, 1), out=out)
        sink.write(slice(images.start * tokens, images.stop * tokens), rows.view(-1, heads * width))
    return sink.result()


def _attend(codes: list[Tensor], scales: list[Tensor], qmax: int) -> tuple[Tensor, Tensor]:
    """Attention of some heads: the integer sums and what rescales them.

    codes: q [H, T, d], k [H, d, T], v [H, T, d]; scales: q [H, T, 1], k and v [H, 1, T].
    Returns fp32 [H, T, d] and [H, T, 1].
    """
    q, k, v = codes
    heads, tokens, width = q.shape
    keys, values = k.unbind(), v.unbind()
    sums = torch.empty((heads, tokens, width), dtype=torch.int32)
    ratio = torch.empty((heads, tokens, 1), dtype=torch.float32)
    for span in _spans(tokens, heads * tokens):
        acc = scratch("logits", (heads, span.stop - span.start, tokens)).view(torch.int32)
        for a, b, o in zip(q[:, span].unbind(), keys, acc.unbind(), strict=True):
            multiply(a, b, o)
        y = _in_float(acc)
        y.mul_(scales[0][:, span]).mul_(scales[1])
        y.sub_(y.amax(-1, keepdim=True)).exp2_()
        divisor = y.sum(-1, keepdim=True)
        scale = reference.scale_of(y.mul_(scales[2]).amax(-1, keepdim=True), qmax)
        numerators = y.mul_(scale.reciprocal()).round_().to(torch.int8)
        for a, b, o in zip(numerators.unbind(), values, sums[:, span].unbind(), strict=True):
            multiply(a, b, o)
        ratio[:, span] = scale.div_(divisor)
    return _in_float(sums), ratio


class _Product:
    """An integer matrix product whose rows are computed on demand, rescaled, with the bias."""

    def __init__(
        self,
        x: Tensor,
        x_scale: Tensor,
        w: Tensor,
        w_scale: Tensor,
        multiplier: Tensor | None,
        bias: Tensor | None,
    ) -> None:
        dynamic = x_scale.shape[:-1] == x.shape[:-1]
        if x.dtype == torch.uint8:
            x = unpack_int4(x, 2 * x.shape[-1])
        k, groups = x.shape[-1], x_scale.shape[-1]
        self._x = x.reshape(-1, k)
        count = self._x.shape[0]
        self._x_scale = x_scale.reshape(-1, groups) if dynamic else x_scale.expand(count, groups)
        self._w = int8_weight(w, k, multiplier).t()
        self._w_scale = w_scale
        self._bias = bias

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield all rows as (rows, fp32 values) in one buffer that may be written to."""
        width = self._w.shape[1]
        for span in _spans(self._x.shape[0], width):
            yield span, self.write(span, scratch("product", (span.stop - span.start, width)))

    def write(self, rows: slice, y: Tensor) -> Tensor:
        """Compute some rows into `y`, fp32 [rows, N], contiguous; return it."""
        x, scale = self._x[rows], self._x_scale[rows]
        groups = scale.shape[1]
        size = x.shape[1] // groups
        part = y
        for g in range(groups):
            columns = slice(g * size, (g + 1) * size)
            _in_float(multiply(x[:, columns], self._w[columns], part.view(torch.int32)))
            part.mul_(scale[:, g : g + 1])
            if g:
                y.add_(part)
            elif groups > 1:
                part = scratch("part", (y.shape[0], y.shape[1]))
        y.mul_(self._w_scale)
        return y if self._bias is None else y.add_(self._bias)


def _in_float(sums: Tensor) -> Tensor:
    """The int32 sums as fp32, in the same memory: half the traffic of a copy, 7.6 against 14.3 us for 768 KiB."""
    return sums.view(torch.float32).copy_(sums)


def _spans(count: int, width: int) -> Iterator[slice]:
    """Consecutive slices of `count` rows of `width` fp32 values, each of about a cache's size."""
    step = max(_BLOCK * torch.get_num_threads() // width, 1)
    pieces = -(-count // step)
    step = -(-count // pieces) if pieces else 1  # even pieces: no short rest
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
