"""The `reference` backend: every op composed of the functions of `reference.py`, on any device.

The arguments are those of the registered ops, flat tensors and numbers, already checked. Results
are the definition that the other backends are tested against.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from qvit_kernels import reference
from qvit_kernels.packing import pack_int4, unpack_int4
from qvit_kernels.reference import BlockTransform, QKNorm, Quantized, Weight
from qvit_kernels.storage import empty_values

# int8 operands: -128 is a legal code (pixels have it), so one product reaches 2^14.
_BOUND = 128 * 128


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
    y = reference.layer_norm(x, weight, bias, eps)
    return quantize_rows(y, signs, block, bits, group, packed, static_scale, prefix)


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
    y = reference.block_transform(x.float(), transform_of(signs, block))
    codes, scale = reference.quantize_rows(y, bits, group, static_scale, prefix)
    stored = codes.to(torch.int8).contiguous()
    # no output may be an input: the caller has its static scale
    own = scale.contiguous() if static_scale is None else scale.new_empty(0)
    return pack_int4(stored) if packed else stored, own


def quantize_pixels(
    images: Tensor, gain: Tensor, offset: Tensor, height: int, width: int
) -> Tensor:
    """Codes of the pixels, cut into patches."""
    codes = reference.quantize_pixels(images, gain, offset).to(torch.int8)
    return reference.unfold_patches(codes.contiguous(), (height, width)).contiguous()


def linear(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    multiplier: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Matrix product with rescaling."""
    codes = unpack_int4(x, 2 * x.shape[-1]) if x.dtype == torch.uint8 else x
    weight = unpack_int4(w, codes.shape[-1]) if w.dtype == torch.uint8 else w
    levels = None if multiplier is None else multiplier.float()
    return reference.linear(
        Quantized(codes.float(), x_scale), Weight(weight.float(), w_scale, levels), bias, _BOUND
    ).contiguous()


def embedding_of(linear: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`linear_embed` out of a backend's `linear`."""

    def linear_embed(
        x: Tensor,
        x_scale: Tensor,
        w: Tensor,
        w_scale: Tensor,
        multiplier: Tensor | None,
        bias: Tensor | None,
        prefix: Tensor | None,
        positions: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """Matrix product with rescaling of patches, prefix tokens before them, positions added."""
        patches = linear(x, x_scale, w, w_scale, multiplier, bias)
        return reference.place_tokens(patches, prefix, positions).to(dtype)

    return linear_embed


linear_embed = embedding_of(linear)


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
    y = residual.float() + linear(x, x_scale, w, w_scale, multiplier, bias)
    return y.to(residual.dtype).contiguous()


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
    y = reference.gelu(linear(x, x_scale, w, w_scale, multiplier, bias), approximate)
    return quantize_rows(y, signs, block, bits, group, packed, static_scale, prefix)


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
    q, k, v = reference.split_heads(linear(x, x_scale, w, w_scale, multiplier, bias), heads)
    if norm:
        q, k = reference.normalize_heads(
            q, k, QKNorm(norm[0], norm[1], norm[2], norm[3], eps), transform_of(signs, block)
        )
    parts = [reference.quantize_heads(part, bits) for part in (q, k, v)]
    codes = [part.codes.to(torch.int8).contiguous() for part in parts]
    scales = [part.scale.contiguous() for part in parts]
    values = empty_values(codes[2].shape, codes[2].device).copy_(codes[2])
    return codes[0], scales[0], codes[1], scales[1], values, scales[2]


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
    """Softmax attention, its output quantized."""
    if q.numel() == 0:
        batch, heads, tokens, width = q.shape
        rows = q_scale.new_empty(batch, tokens, heads * width)
    else:
        rows = reference.attention(
            Quantized(q.float(), q_scale),
            Quantized(k.float(), k_scale),
            Quantized(v.float(), v_scale),
            softmax_scale=softmax_scale,
            softmax_bits=softmax_bits,
            bias=bias,
            mask=mask,
            bound=_BOUND,
        )
    return quantize_rows(rows, None, 0, bits, group, packed, static_scale, prefix)


def transform_of(signs: Tensor | None, block: int) -> BlockTransform | None:
    """The transform that an op received as two arguments."""
    return None if signs is None else BlockTransform(signs, block)
