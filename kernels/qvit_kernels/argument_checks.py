"""The checks of the ops' arguments: TypeError for a dtype, ValueError for a shape or number, naming what is wrong."""

import torch
from torch import Tensor

from qvit_kernels.packing import packed_size
from qvit_kernels.reference import BlockTransform, Quantized, Weight

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# An int32 sum of products of two int8 codes cannot overflow up to this width.
_MAX_K = 2**31 // 2**14 - 1


def check_logits(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """A bias or mask of attention over heads of `shape`, [B, H, T, d]."""
    batch, heads, tokens, _ = shape
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
    rows = tensor.shape[0] if tensor.dim() == 4 else 0
    fits = tensor.shape[1:] in ((1, tokens, tokens), (heads, tokens, tokens))
    if rows == 0 or batch % rows or not fits:
        raise ValueError(
            f"{name} must be [b, 1 or {heads}, {tokens}, {tokens}] with b a divisor of {batch}, got {shape_of(tensor)}"
        )


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """For a message."""
    return tuple(tensor.shape)


def check_float(name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """A float tensor of one of `dtypes` with a last axis that holds something."""
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} must be {' or '.join(map(str, dtypes))}, got {tensor.dtype}")
    if tensor.dim() == 0 or tensor.shape[-1] == 0:
        raise ValueError(f"{name} must have a last axis that is not empty, got {shape_of(tensor)}")


def check_codes(name: str, codes: Tensor) -> None:
    """int8 codes with a last axis that holds something."""
    if codes.dtype != torch.int8:
        raise TypeError(f"{name}.codes must be torch.int8, got {codes.dtype}")
    if codes.dim() == 0 or codes.shape[-1] == 0:
        raise ValueError(
            f"{name}.codes must have a last axis that is not empty, got {shape_of(codes)}"
        )


def check_vector(name: str, tensor: Tensor, size: int) -> None:
    """fp32 [size]."""
    if tensor.dtype != torch.float32:
        raise TypeError(f"{name} must be torch.float32, got {tensor.dtype}")
    if tensor.dim() != 1 or tensor.shape[0] != size:
        raise ValueError(f"{name} must have shape ({size},), got {shape_of(tensor)}")


def check_bits(name: str, bits: int) -> None:
    """2 to 8."""
    if not 2 <= bits <= 8:
        raise ValueError(f"{name} must be 2 to 8, got {bits}")


def check_places(x: Quantized, rows: int, prefix: Tensor | None, positions: Tensor | None) -> None:
    """What is put before patches [B, P, K] and added to them; rows: of the weight."""
    if x.codes.dim() != 3:
        raise ValueError(f"x must be [B, P, K], got {shape_of(x.codes)}")
    for name, tensor in (("prefix", prefix), ("positions", positions)):
        if tensor is None:
            continue
        check_float(name, tensor, (torch.float32,))
        if tensor.dim() != 2 or tensor.shape[1] != rows:
            raise ValueError(f"{name} must be [..., {rows}] of two axes, got {shape_of(tensor)}")
    patches, before = x.codes.shape[1], 0 if prefix is None else prefix.shape[0]
    if positions is not None and positions.shape[0] not in (patches, before + patches):
        raise ValueError(
            f"positions must be for {patches} patches or for {before + patches} tokens, got {shape_of(positions)}"
        )


def check_grid(
    width: int, bits: int, group: int, packed: bool, static_scale: Tensor | None
) -> None:
    """How rows of `width` values are quantized."""
    check_bits("bits", bits)
    if group < 0 or (group and width % group):
        raise ValueError(f"group must be 0 or divide the row, got {group} for {width} values")
    if packed and (bits > 4 or width % 2):
        raise ValueError(
            f"packed codes have at most 4 bits, in rows of an even length, got {bits} bits, {width} values"
        )
    if static_scale is not None:
        check_float("static_scale", static_scale, (torch.float32,))
        expected = (1, width // group if group else 1)
        if static_scale.shape != expected:
            raise ValueError(
                f"static_scale must be {expected} for groups of {group or width}, got {shape_of(static_scale)}"
            )


def check_prefix(
    prefix: int, shape: tuple[int, ...], bits: int, packed: bool, static_scale: Tensor | None
) -> None:
    """How many of the first rows of an image have 8 bits. shape: [..., T, K], of the rows or of heads."""
    if not prefix:
        return
    if len(shape) < 2 or not 0 < prefix <= shape[-2]:
        raise ValueError(
            f"prefix must be 0, or rows of an image [..., T, K] of T at least as many, got {prefix} for {shape}"
        )
    if bits == 8:
        raise ValueError(f"prefix must be 0 where all rows have 8 bits, got {prefix}")
    if packed:
        raise ValueError(
            f"packed codes have 4 bits, and the rows of a prefix 8: packed must be False or prefix 0, got {prefix}"
        )
    if static_scale is not None:
        raise ValueError(
            f"the rows of a prefix have scales of their own: static_scale must be None or prefix 0, got {prefix}"
        )


def transform_arguments(transform: BlockTransform | None, width: int) -> tuple[Tensor | None, int]:
    """Signs and block of a transform, as the ops take them: None and 0 for no transform."""
    if transform is None:
        return None, 0
    check_vector("transform.signs", transform.signs, width)
    if transform.block < 1 or width % transform.block:
        raise ValueError(
            f"transform.block must divide the row, got {transform.block} for {width} values"
        )
    return transform.signs, transform.block


def check_product(x: Quantized, weight: Weight, bias: Tensor | None) -> None:
    """The operands that every op with a matrix product starts with."""
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
            f"{kind}weight.codes must be [N, {stored}] for x of {k} columns, got {shape_of(codes)}"
        )
    check_vector("weight.scale", weight.scale, codes.shape[0])
    if weight.multiplier is not None:
        _check_multiplier(weight.multiplier, codes.shape[0], k)
    if bias is not None:
        check_vector("bias", bias, codes.shape[0])


def _check_activations(x: Quantized) -> int:
    """Number of columns."""
    if x.codes.dtype == torch.uint8:
        check_codes("x", x.codes.view(torch.int8))
        k = 2 * x.codes.shape[-1]
    else:
        check_codes("x", x.codes)
        k = x.codes.shape[-1]
    if k > _MAX_K:
        raise ValueError(f"x may have at most {_MAX_K} columns for an int32 sum, got {k}")
    check_float("x.scale", x.scale, (torch.float32,))
    if x.scale.shape[:-1] != x.codes.shape[:-1] and (x.scale.dim() != 2 or x.scale.shape[0] != 1):
        raise ValueError(
            f"x.scale must be {(*x.codes.shape[:-1], 'G')} or (1, G), got {shape_of(x.scale)}"
        )
    if k % x.scale.shape[-1]:
        raise ValueError(f"the groups of x.scale must divide {k} columns, got {x.scale.shape[-1]}")
    return k


def _check_multiplier(multiplier: Tensor, rows: int, k: int) -> None:
    if multiplier.dtype != torch.int8:
        raise TypeError(f"weight.multiplier must be torch.int8, got {multiplier.dtype}")
    if multiplier.dim() != 2 or multiplier.shape[0] != rows or not multiplier.shape[1]:
        raise ValueError(f"weight.multiplier must be ({rows}, G), got {shape_of(multiplier)}")
    if k % multiplier.shape[1]:
        raise ValueError(
            f"the groups of weight.multiplier must divide {k} columns, got {multiplier.shape[1]}"
        )
