"""The operations of a quantized ViT block: typed, checked, run by the backend that is chosen.

One operation is one launch: everything between two matrix products happens inside. Codes are int8, whatever their bits,
or uint8 with two int4 codes in a byte (`packing`): weights in rows of ceil(K/2) bytes, and activations where `packed`
asked for it. `reference.py` defines every result, and is what to train through: nothing here has a gradient. Results
are new, and contiguous but for the codes of V (see `linear_qkv`). All raise TypeError for a dtype and ValueError for a
shape or number that does not fit, naming the argument, the rule and what came.

    x.codes            int8 [..., K], or uint8 [..., K/2] for an even K
    x.scale            fp32 [..., G], or [1, G] for all rows (static); G divides K
    weight.codes       int8 [N, K], or uint8 [N, ceil(K/2)]
    weight.scale       fp32 [N]
    weight.multiplier  int8 [N, Gw], Gw divides K, or None; |code * multiplier| <= 127, which is not checked
    static_scale       fp32 [1, width / group], positive: an op that quantizes rows takes it in place of a scale of each
                       row, saturates, and returns it as it is; None: dynamic
    prefix             how many of the first rows of an image, x [..., T, K], are quantized with 8 bits where the others
                       have fewer: class, distillation and register tokens. Not with packed codes or a static scale
"""

import torch
from torch import Tensor

from qvit_kernels import registration  # noqa: F401 - defines the ops
from qvit_kernels.argument_checks import (
    FLOATS,
    check_bits,
    check_codes,
    check_float,
    check_grid,
    check_logits,
    check_places,
    check_prefix,
    check_product,
    check_vector,
    shape_of,
    transform_arguments,
)
from qvit_kernels.backends import BACKENDS, BackendError, backend, set_backend, use_backend
from qvit_kernels.reference import BlockTransform, QKNorm, Quantized, Weight

__all__ = [
    "BACKENDS",
    "BackendError",
    "BlockTransform",
    "QKNorm",
    "Quantized",
    "Weight",
    "attention",
    "backend",
    "layernorm_quantize",
    "linear",
    "linear_embed",
    "linear_gelu_quantize",
    "linear_qkv",
    "linear_residual",
    "quantize_pixels",
    "quantize_rows",
    "set_backend",
    "use_backend",
]


def layernorm_quantize(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    transform: BlockTransform | None,
    bits: int,
    group: int = 0,
    *,
    packed: bool = False,
    static_scale: Tensor | None = None,
    prefix: int = 0,
    backend: str | None = None,
) -> Quantized:
    """LayerNorm over the last axis in fp32, the block transform, then quantization of rows or groups.

    x: fp32, bf16 or fp16 [..., K]; weight, bias: fp32 [K]; group: values that share a scale, 0 for
    the row. Returns codes int8 [..., K], scale fp32 [..., K / group].
    """
    check_float("x", x, FLOATS)
    check_vector("weight", weight, x.shape[-1])
    check_vector("bias", bias, x.shape[-1])
    signs, block = transform_arguments(transform, x.shape[-1])
    check_grid(x.shape[-1], bits, group, packed, static_scale)
    check_prefix(prefix, shape_of(x), bits, packed, static_scale)
    rows = torch.ops.qvit.layernorm_quantize.default(
        x, weight, bias, eps, signs, block, bits, group, packed, static_scale, prefix, backend=backend
    )  # fmt: skip
    return _quantized(rows, static_scale)


def quantize_rows(
    x: Tensor,
    transform: BlockTransform | None,
    bits: int,
    group: int = 0,
    *,
    packed: bool = False,
    static_scale: Tensor | None = None,
    prefix: int = 0,
    backend: str | None = None,
) -> Quantized:
    """The block transform, then symmetric quantization of each row, or of each `group` of it.

    x: fp32, bf16 or fp16 [..., K]. Returns codes int8 [..., K], scale fp32 [..., K / group].
    """
    check_float("x", x, FLOATS)
    signs, block = transform_arguments(transform, x.shape[-1])
    check_grid(x.shape[-1], bits, group, packed, static_scale)
    check_prefix(prefix, shape_of(x), bits, packed, static_scale)
    rows = torch.ops.qvit.quantize_rows.default(
        x, signs, block, bits, group, packed, static_scale, prefix, backend=backend
    )
    return _quantized(rows, static_scale)


def quantize_pixels(
    images: Tensor,
    gain: Tensor,
    offset: Tensor,
    patch: tuple[int, int],
    *,
    backend: str | None = None,
) -> Tensor:
    """8-bit codes of normalised images, cut into patches: rint(x * gain + offset).

    images: float [B, C, H, W]; gain, offset: fp32 [C] (255 * std, 255 * mean - 128); patch:
    (height, width), dividing H and W. Returns int8 [B, T, C * height * width], columns in the order
    of a convolution weight.
    """
    check_float("images", images, FLOATS)
    if images.dim() != 4:
        raise ValueError(f"images must be [B, C, H, W], got {shape_of(images)}")
    check_vector("gain", gain, images.shape[1])
    check_vector("offset", offset, images.shape[1])
    height, width = patch
    if not (1 <= height <= images.shape[2] and 1 <= width <= images.shape[3]):
        raise ValueError(
            f"patch must fit in the image, got {height}x{width} for {shape_of(images)}"
        )
    return torch.ops.qvit.quantize_pixels.default(
        images, gain, offset, height, width, backend=backend
    )


def linear(
    x: Quantized, weight: Weight, bias: Tensor | None, *, backend: str | None = None
) -> Tensor:
    """Integer matrix product with rescaling and bias: the head.

    x: [..., K]; weight: [N, K]; bias: fp32 [N] or None. Returns fp32 [..., N].
    """
    check_product(x, weight, bias)
    return torch.ops.qvit.linear.default(*x, *weight, bias, backend=backend)


def linear_embed(
    x: Quantized,
    weight: Weight,
    bias: Tensor | None,
    prefix: Tensor | None,
    positions: Tensor | None,
    dtype: torch.dtype = torch.float32,
    *,
    backend: str | None = None,
) -> Tensor:
    """`linear` of patches, prefix tokens before those of each image, then position embeddings added, in fp32: all that
    the first block reads.

    x: [B, P, K]; prefix: fp32 [n, N], or None for n = 0; positions: fp32 [n + P, N], or [P, N] for patches alone, or
    None; dtype: fp32, bf16 or fp16, what the sum is rounded to. Returns [B, n + P, N] in it.
    """
    check_product(x, weight, bias)
    check_places(x, weight.codes.shape[0], prefix, positions)
    if dtype not in FLOATS:
        raise TypeError(f"dtype must be {' or '.join(map(str, FLOATS))}, got {dtype}")
    return torch.ops.qvit.linear_embed.default(
        *x, *weight, bias, prefix, positions, dtype, backend=backend
    )


def linear_residual(
    x: Quantized,
    weight: Weight,
    bias: Tensor | None,
    residual: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    """`linear` added to the residual stream in fp32, then rounded to the stream's dtype.

    residual: fp32, bf16 or fp16 [..., N]. Returns a new tensor like it, contiguous.
    """
    check_product(x, weight, bias)
    check_float("residual", residual, FLOATS)
    if residual.shape != (*x.codes.shape[:-1], weight.codes.shape[0]):
        raise ValueError(
            f"residual must have the shape of the product, "
            f"{(*x.codes.shape[:-1], weight.codes.shape[0])}, got {shape_of(residual)}"
        )
    return torch.ops.qvit.linear_residual.default(*x, *weight, bias, residual, backend=backend)


def linear_gelu_quantize(
    x: Quantized,
    weight: Weight,
    bias: Tensor | None,
    approximate: str,
    transform: BlockTransform | None,
    bits: int,
    group: int = 0,
    *,
    packed: bool = False,
    static_scale: Tensor | None = None,
    prefix: int = 0,
    backend: str | None = None,
) -> Quantized:
    """`linear`, GELU, the block transform, then quantization: fc1 of the MLP.

    approximate: "none" (erf) or "tanh". Returns codes int8 [..., N], scale fp32 [..., N / group].
    """
    check_product(x, weight, bias)
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
    signs, block = transform_arguments(transform, weight.codes.shape[0])
    check_grid(weight.codes.shape[0], bits, group, packed, static_scale)
    check_prefix(prefix, shape_of(x.codes), bits, packed, static_scale)
    rows = torch.ops.qvit.linear_gelu_quantize.default(
        *x, *weight, bias, approximate, signs, block, bits, group, packed, static_scale, prefix, backend=backend
    )  # fmt: skip
    return _quantized(rows, static_scale)


def linear_qkv(
    x: Quantized,
    weight: Weight,
    bias: Tensor | None,
    heads: int,
    bits: int,
    qk_norm: QKNorm | None = None,
    qk_transform: BlockTransform | None = None,
    *,
    backend: str | None = None,
) -> tuple[Quantized, Quantized, Quantized]:
    """`linear`, split into Q, K and V by head, each token of each head quantized.

    x: [B, T, K]; weight: [3 * H * d, K], Q rows first; qk_norm: LayerNorm over d of Q and K before
    they are quantized, qk_transform: a block transform after that norm (of size d or a divisor;
    needs qk_norm, without it the rotation belongs in the weight). Returns Q, K, V: codes int8 [B,
    H, T, d], scale fp32 [B, H, T, 1]. The memory of V's codes is [B, H, d, pitch], the tokens of a channel side by
    side: what `attention` multiplies with.
    """
    check_product(x, weight, bias)
    rows = weight.codes.shape[0]
    if x.codes.dim() != 3:
        raise ValueError(f"x must be [B, T, K], got {shape_of(x.codes)}")
    if heads < 1 or rows % (3 * heads):
        raise ValueError(f"weight rows must be 3 * heads * d, got {rows} rows for {heads} heads")
    width = rows // (3 * heads)
    check_bits("bits", bits)
    norm: list[Tensor] = []
    eps = 0.0
    if qk_norm is not None:
        norm, eps = list(qk_norm[:4]), qk_norm.eps
        for name, tensor in zip(QKNorm._fields, norm, strict=False):
            check_vector(f"qk_norm.{name}", tensor, width)
    elif qk_transform is not None:
        raise ValueError(
            "qk_transform needs qk_norm: without the norm the rotation folds into the weight"
        )
    signs, block = transform_arguments(qk_transform, width)
    out = torch.ops.qvit.linear_qkv.default(
        *x, *weight, bias, heads, bits, norm, eps, signs, block, backend=backend
    )
    return Quantized(*out[:2]), Quantized(*out[2:4]), Quantized(*out[4:])


def attention(
    q: Quantized,
    k: Quantized,
    v: Quantized,
    softmax_scale: float,
    softmax_bits: int,
    bits: int,
    group: int = 0,
    *,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    packed: bool = False,
    static_scale: Tensor | None = None,
    prefix: int = 0,
    backend: str | None = None,
) -> Quantized:
    """Quantized softmax attention, its output quantized by rows or groups: the input of proj.

    q, k, v: codes int8 [B, H, T, d], scale fp32 [B, H, T, 1]; softmax_scale: usually d ** -0.5; bias: fp32, added to
    the logits, mask: bool, False where a key is not to be seen, both [b, h, T, T], b a divisor of B (image i takes
    row i % b), h 1 or H.
    Returns codes int8 [B, T, H * d], scale fp32 [B, T, H * d / group].
    """
    for name, part in (("q", q), ("k", k), ("v", v)):
        check_codes(name, part.codes)
        if part.codes.dim() != 4 or part.codes.shape != q.codes.shape:
            raise ValueError(
                f"q, k and v must be [B, H, T, d] alike, "
                f"got {name} {shape_of(part.codes)}, q {shape_of(q.codes)}"
            )
        check_float(f"{name}.scale", part.scale, (torch.float32,))
        if part.scale.shape != (*q.codes.shape[:3], 1):
            raise ValueError(f"{name}.scale must be [B, H, T, 1], got {shape_of(part.scale)}")
    for name, tensor, dtype in (("bias", bias, torch.float32), ("mask", mask, torch.bool)):
        if tensor is not None:
            check_logits(name, tensor, dtype, shape_of(q.codes))
    check_bits("softmax_bits", softmax_bits)
    check_grid(q.codes.shape[1] * q.codes.shape[3], bits, group, packed, static_scale)
    check_prefix(prefix, shape_of(q.codes), bits, packed, static_scale)
    rows = torch.ops.qvit.attention.default(
        *q, *k, *v, bias, mask, softmax_scale, softmax_bits, bits, group, packed, static_scale, prefix, backend=backend
    )  # fmt: skip
    return _quantized(rows, static_scale)


def _quantized(rows: tuple[Tensor, Tensor], static_scale: Tensor | None) -> Quantized:
    """An op's result: with the scale that it made, or the one that it was given."""
    codes, scale = rows
    return Quantized(codes, scale if static_scale is None else static_scale)
