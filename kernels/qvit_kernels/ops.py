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
"""

import torch
from torch import Tensor

from qvit_kernels import registration  # noqa: F401 - defines the ops
from qvit_kernels.backends import BACKENDS, BackendError, backend, set_backend, use_backend
from qvit_kernels.packing import packed_size
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
    "linear_gelu_quantize",
    "linear_qkv",
    "linear_residual",
    "quantize_pixels",
    "quantize_rows",
    "set_backend",
    "use_backend",
]

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# An int32 sum of products of two int8 codes cannot overflow up to this width.
_MAX_K = 2**31 // 2**14 - 1


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
    backend: str | None = None,
) -> Quantized:
    """LayerNorm over the last axis in fp32, the block transform, then dynamic quantization of rows
    or groups.

    x: fp32, bf16 or fp16 [..., K]; weight, bias: fp32 [K]; group: values that share a scale, 0 for
    the row. Returns codes int8 [..., K], scale fp32 [..., K / group].
    """
    _check_float("x", x, _FLOATS)
    _check_vector("weight", weight, x.shape[-1])
    _check_vector("bias", bias, x.shape[-1])
    signs, block = _transform_arguments(transform, x.shape[-1])
    _check_grid(x.shape[-1], bits, group, packed)
    return Quantized(
        *torch.ops.qvit.layernorm_quantize.default(
            x, weight, bias, eps, signs, block, bits, group, packed, backend=backend
        )
    )


def quantize_rows(
    x: Tensor,
    transform: BlockTransform | None,
    bits: int,
    group: int = 0,
    *,
    packed: bool = False,
    backend: str | None = None,
) -> Quantized:
    """The block transform, then dynamic symmetric quantization of each row, or of each `group` of
    it.

    x: fp32, bf16 or fp16 [..., K]. Returns codes int8 [..., K], scale fp32 [..., K / group].
    """
    _check_float("x", x, _FLOATS)
    signs, block = _transform_arguments(transform, x.shape[-1])
    _check_grid(x.shape[-1], bits, group, packed)
    return Quantized(
        *torch.ops.qvit.quantize_rows.default(x, signs, block, bits, group, packed, backend=backend)
    )


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
    _check_float("images", images, _FLOATS)
    if images.dim() != 4:
        raise ValueError(f"images must be [B, C, H, W], got {_shape(images)}")
    _check_vector("gain", gain, images.shape[1])
    _check_vector("offset", offset, images.shape[1])
    height, width = patch
    if not (1 <= height <= images.shape[2] and 1 <= width <= images.shape[3]):
        raise ValueError(f"patch must fit in the image, got {height}x{width} for {_shape(images)}")
    return torch.ops.qvit.quantize_pixels.default(
        images, gain, offset, height, width, backend=backend
    )


def linear(
    x: Quantized, weight: Weight, bias: Tensor | None, *, backend: str | None = None
) -> Tensor:
    """Integer matrix product with rescaling and bias: the head, the patch embedding.

    x: [..., K]; weight: [N, K]; bias: fp32 [N] or None. Returns fp32 [..., N].
    """
    _check_product(x, weight, bias)
    return torch.ops.qvit.linear.default(*x, *weight, bias, backend=backend)


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
    _check_product(x, weight, bias)
    _check_float("residual", residual, _FLOATS)
    if residual.shape != (*x.codes.shape[:-1], weight.codes.shape[0]):
        raise ValueError(
            f"residual must have the shape of the product, "
            f"{(*x.codes.shape[:-1], weight.codes.shape[0])}, got {_shape(residual)}"
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
    backend: str | None = None,
) -> Quantized:
    """`linear`, GELU, the block transform, then dynamic quantization: fc1 of the MLP.

    approximate: "none" (erf) or "tanh". Returns codes int8 [..., N], scale fp32 [..., N / group].
    """
    _check_product(x, weight, bias)
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
    signs, block = _transform_arguments(transform, weight.codes.shape[0])
    _check_grid(weight.codes.shape[0], bits, group, packed)
    return Quantized(
        *torch.ops.qvit.linear_gelu_quantize.default(
            *x, *weight, bias, approximate, signs, block, bits, group, packed, backend=backend
        )
    )


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
    _check_product(x, weight, bias)
    rows = weight.codes.shape[0]
    if x.codes.dim() != 3:
        raise ValueError(f"x must be [B, T, K], got {_shape(x.codes)}")
    if heads < 1 or rows % (3 * heads):
        raise ValueError(f"weight rows must be 3 * heads * d, got {rows} rows for {heads} heads")
    width = rows // (3 * heads)
    _check_bits("bits", bits)
    norm: list[Tensor] = []
    eps = 0.0
    if qk_norm is not None:
        norm, eps = list(qk_norm[:4]), qk_norm.eps
        for name, tensor in zip(QKNorm._fields, norm, strict=False):
            _check_vector(f"qk_norm.{name}", tensor, width)
    elif qk_transform is not None:
        raise ValueError(
            "qk_transform needs qk_norm: without the norm the rotation folds into the weight"
        )
    signs, block = _transform_arguments(qk_transform, width)
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
    backend: str | None = None,
) -> Quantized:
    """Quantized softmax attention, its output quantized by rows or groups: the input of proj.

    q, k, v: codes int8 [B, H, T, d], scale fp32 [B, H, T, 1]; softmax_scale: usually d ** -0.5; bias: fp32, added to
    the logits, mask: bool, False where a key is not to be seen, both [b, h, T, T], b a divisor of B (image i takes
    row i % b), h 1 or H.
    Returns codes int8 [B, T, H * d], scale fp32 [B, T, H * d / group].
    """
    for name, part in (("q", q), ("k", k), ("v", v)):
        _check_codes(name, part.codes)
        if part.codes.dim() != 4 or part.codes.shape != q.codes.shape:
            raise ValueError(
                f"q, k and v must be [B, H, T, d] alike, "
                f"got {name} {_shape(part.codes)}, q {_shape(q.codes)}"
            )
        _check_float(f"{name}.scale", part.scale, (torch.float32,))
        if part.scale.shape != (*q.codes.shape[:3], 1):
            raise ValueError(f"{name}.scale must be [B, H, T, 1], got {_shape(part.scale)}")
    for name, tensor, dtype in (("bias", bias, torch.float32), ("mask", mask, torch.bool)):
        if tensor is not None:
            _check_logits(name, tensor, dtype, _shape(q.codes))
    _check_bits("softmax_bits", softmax_bits)
    _check_grid(q.codes.shape[1] * q.codes.shape[3], bits, group, packed)
    return Quantized(
        *torch.ops.qvit.attention.default(
            *q,
            *k,
            *v,
            bias,
            mask,
            softmax_scale,
            softmax_bits,
            bits,
            group,
            packed,
            backend=backend,
        )
    )


def _check_logits(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    batch, heads, tokens, _ = shape
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
    rows = tensor.shape[0] if tensor.dim() == 4 else 0
    fits = tensor.shape[1:] in ((1, tokens, tokens), (heads, tokens, tokens))
    if rows == 0 or batch % rows or not fits:
        raise ValueError(
            f"{name} must be [b, 1 or {heads}, {tokens}, {tokens}] with b a divisor of {batch}, got {_shape(tensor)}"
        )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _check_float(name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} must be {' or '.join(map(str, dtypes))}, got {tensor.dtype}")
    if tensor.dim() == 0 or tensor.shape[-1] == 0:
        raise ValueError(f"{name} must have a last axis that is not empty, got {_shape(tensor)}")


def _check_codes(name: str, codes: Tensor) -> None:
    if codes.dtype != torch.int8:
        raise TypeError(f"{name}.codes must be torch.int8, got {codes.dtype}")
    if codes.dim() == 0 or codes.shape[-1] == 0:
        raise ValueError(
            f"{name}.codes must have a last axis that is not empty, got {_shape(codes)}"
        )


def _check_vector(name: str, tensor: Tensor, size: int) -> None:
    if tensor.dtype != torch.float32:
        raise TypeError(f"{name} must be torch.float32, got {tensor.dtype}")
    if tensor.dim() != 1 or tensor.shape[0] != size:
        raise ValueError(f"{name} must have shape ({size},), got {_shape(tensor)}")


def _check_bits(name: str, bits: int) -> None:
    if not 2 <= bits <= 8:
        raise ValueError(f"{name} must be 2 to 8, got {bits}")


def _check_grid(width: int, bits: int, group: int, packed: bool) -> None:
    _check_bits("bits", bits)
    if group < 0 or (group and width % group):
        raise ValueError(f"group must be 0 or divide the row, got {group} for {width} values")
    if packed and (bits > 4 or width % 2):
        raise ValueError(
            f"packed codes have at most 4 bits, in rows of an even length, got {bits} bits, {width} values"
        )


def _transform_arguments(transform: BlockTransform | None, width: int) -> tuple[Tensor | None, int]:
    if transform is None:
        return None, 0
    _check_vector("transform.signs", transform.signs, width)
    if transform.block < 1 or width % transform.block:
        raise ValueError(
            f"transform.block must divide the row, got {transform.block} for {width} values"
        )
    return transform.signs, transform.block


def _check_product(x: Quantized, weight: Weight, bias: Tensor | None) -> None:
    k = _check_activations(x)
    codes = weight.codes
    if codes.dtype not in (torch.int8, torch.uint8):
        raise TypeError(
            f"weight.codes must be torch.int8, or torch.uint8 with packed int4, got {codes.dtype}"
        )
    stored = k if codes.dtype == torch.int8 else packed_size(k)
    if codes.dim() != 2 or codes.shape[0] == 0 or codes.shape[1] != stored:
        kind = "" if codes.dtype == torch.int8 else "packed "
        raise ValueError(
            f"{kind}weight.codes must be [N, {stored}] for x of {k} columns, got {_shape(codes)}"
        )
    _check_vector("weight.scale", weight.scale, codes.shape[0])
    if weight.multiplier is not None:
        _check_multiplier(weight.multiplier, codes.shape[0], k)
    if bias is not None:
        _check_vector("bias", bias, codes.shape[0])


def _check_activations(x: Quantized) -> int:
    """Number of columns."""
    if x.codes.dtype == torch.uint8:
        _check_codes("x", x.codes.view(torch.int8))
        k = 2 * x.codes.shape[-1]
    else:
        _check_codes("x", x.codes)
        k = x.codes.shape[-1]
    if k > _MAX_K:
        raise ValueError(f"x may have at most {_MAX_K} columns for an int32 sum, got {k}")
    _check_float("x.scale", x.scale, (torch.float32,))
    if x.scale.shape[:-1] != x.codes.shape[:-1] and (x.scale.dim() != 2 or x.scale.shape[0] != 1):
        raise ValueError(
            f"x.scale must be {(*x.codes.shape[:-1], 'G')} or (1, G), got {_shape(x.scale)}"
        )
    if k % x.scale.shape[-1]:
        raise ValueError(f"the groups of x.scale must divide {k} columns, got {x.scale.shape[-1]}")
    return k


def _check_multiplier(multiplier: Tensor, rows: int, k: int) -> None:
    if multiplier.dtype != torch.int8:
        raise TypeError(f"weight.multiplier must be torch.int8, got {multiplier.dtype}")
    if multiplier.dim() != 2 or multiplier.shape[0] != rows or not multiplier.shape[1]:
        raise ValueError(f"weight.multiplier must be ({rows}, G), got {_shape(multiplier)}")
    if k % multiplier.shape[1]:
        raise ValueError(
            f"the groups of weight.multiplier must divide {k} columns, got {multiplier.shape[1]}"
        )
