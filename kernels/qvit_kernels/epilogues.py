"""What a matrix product does with its tile before it leaves the registers: device functions of the GEMM kernels.

A tile is fp32 [BM, BN], the sum over the groups of x, each with its scale; `finish_product` makes it the product. All
tiles here have their columns in order. Padding rows and columns of a tile hold copies of the last valid ones, so that
nothing is infinite there; they are never stored.
"""

import triton
import triton.language as tl

from qvit_kernels import arithmetic

# pyright: reportArgumentType=false


@triton.jit
def finish_product(total, w_scale_ptr, bias_ptr, columns):
    """total * w_scale[n] + bias[n], two rounded operations. total: [BM, BN]; columns: [BN], within N."""
    y = total * tl.load(w_scale_ptr + columns)[None, :]
    if bias_ptr is not None:
        y = y + tl.load(bias_ptr + columns)[None, :]
    return y


@triton.jit
def turn_blocks(
    y,
    signs_ptr,
    columns,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BLOCK: tl.constexpr,
    NORM: tl.constexpr,
):
    """`reference.block_transform` of a tile. signs_ptr: None for no transform; BLOCK: a power of two."""
    if signs_ptr is not None:
        y = y * tl.load(signs_ptr + columns)[None, :]
        y = arithmetic.block_hadamard(y, BM, BN, BLOCK, NORM)
    return y


@triton.jit
def quantize_groups(
    y,
    BM: tl.constexpr,
    BN: tl.constexpr,
    GROUP: tl.constexpr,
    STEPS: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    SIGNED: tl.constexpr,
    narrow=None,
):
    """`reference.quantize_rows` of a tile, or `quantize_heads` with SIGNED False: int8 codes [BM, BN], fp32 scales
    [BM, BN / GROUP]. narrow: `arithmetic.narrow_rows`, [BM] or None.
    """
    grouped = tl.reshape(y, (BM, BN // GROUP, GROUP))
    high, low = arithmetic.reach_of((grouped,), 0, 1, SIGNED)
    scale = arithmetic.reached_scale(high, low, 2, 1.0, STEPS, SIGNED, narrow)
    inverse = arithmetic.reciprocal(scale)
    codes = arithmetic.codes_of(grouped, inverse[:, :, None], LOW, HIGH, HIGH < 127, narrow)
    return tl.reshape(codes, (BM, BN)), scale


@triton.jit
def quantize_columns(y, scale_ptr, groups, LOW: tl.constexpr, HIGH: tl.constexpr):
    """`reference.quantize_rows` of a tile by static scales: int8 [BM, BN]. groups: of the columns, [BN] or [1]."""
    inverse = arithmetic.reciprocal(tl.load(scale_ptr + groups))
    return arithmetic.codes_of(y, inverse[None, :], LOW, HIGH, True)


@triton.jit
def pack_halves(codes, BM: tl.constexpr, BN: tl.constexpr):
    """The int4 layout of `packing`: uint8 [BM, BN / 2] of int8 codes [BM, BN], BN a multiple of 64."""
    halves = tl.permute(tl.reshape(codes, (BM, BN // 64, 2, 32)), (0, 1, 3, 2))
    low, high = tl.split(halves)
    packed = (low & 0x0F) | (high << 4)
    return tl.reshape(packed.to(tl.uint8, bitcast=True), (BM, BN // 2))


@triton.jit
def normalize_groups(
    y,
    weight_ptr,
    bias_ptr,
    channels,
    eps,
    D: tl.constexpr,
    BM: tl.constexpr,
    HEADS: tl.constexpr,
    DP: tl.constexpr,
):
    """LayerNorm over the D channels of each head of a tile [BM, HEADS * DP]. channels: [HEADS * DP], those of the head
    at each column, D and above for padding.
    """
    inside = channels < D
    z = tl.reshape(tl.where(inside[None, :], y, 0.0), (BM, HEADS, DP))
    mean = tl.sum(z, 2) * (1.0 / D)
    z = z - mean[:, :, None]
    z = tl.where(tl.reshape(inside, (1, HEADS, DP)), z, 0.0)
    variance = tl.sum(z * z, 2) * (1.0 / D)
    deviation = tl.sqrt_rn(variance + eps)
    z = tl.reshape(z * arithmetic.reciprocal(deviation)[:, :, None], (BM, HEADS * DP))
    z = z * tl.load(weight_ptr + channels, mask=inside, other=0.0)[None, :]
    return z + tl.load(bias_ptr + channels, mask=inside, other=0.0)[None, :]
