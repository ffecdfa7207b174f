"""The main loop of int8 products: x int8 [M, K] times w int8 [N, K] transposed, sums in int32.

Both operands lie with K innermost, the only order that int8 tensor cores read without a shuffle of bytes, and both are
loaded as [rows, BK] tiles and turned with `.T`: written as a [BK, BN] load, the same loop grows from 127 instructions
to 798 on sm_80 under Triton 3.8 and 3.9.
"""

import triton
import triton.language as tl

from qvit_kernels import arithmetic

# pyright: reportArgumentType=false


@triton.jit
def multiply_int8(
    acc, x_rows, w_rows, k, K,
    BK: tl.constexpr, EVEN: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    """acc plus the products of the columns k .. k + BK. x_rows: pointers [BM, 1], w_rows: [BN, 1] to the rows' starts;
    EVEN: BK divides K; SWAP: acc is [BN, BM] and not [BM, BN].
    """
    columns = k + tl.arange(0, BK)[None, :]
    if EVEN:
        x = tl.load(x_rows + columns)  # [BM, BK]
        w = tl.load(w_rows + columns)  # [BN, BK]
    else:
        x = tl.load(x_rows + columns, mask=columns < K, other=0)
        w = tl.load(w_rows + columns, mask=columns < K, other=0)
    if SWAP:
        acc = tl.dot(w, x.T, acc, out_dtype=tl.int32)
    else:
        acc = tl.dot(x, w.T, acc, out_dtype=tl.int32)
    return acc


@triton.jit
def sum_int8(
    x_ptr, w_ptr, rows, w_rows, first, count, K,
    EVEN: tl.constexpr, SWAP: tl.constexpr, ROWS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The sum over the columns first .. first + count, int32 [BM, BN].

    rows: [BM] of x, w_rows: [BN] of w, both valid.
    ROWS: two dots a step. Triton gives products that feed each other warps along the longer side alone, so that a
    thread of an mma.sync accumulator holds a quarter of a row: an epilogue over rows takes 37 instructions a value
    then and not 60.
    """
    x = x_ptr + rows.to(tl.int64)[:, None] * K
    w = w_ptr + w_rows.to(tl.int64)[:, None] * K
    acc = tl.zeros((BN, BM) if SWAP else (BM, BN), tl.int32)
    for step in range(0, arithmetic.end_of(count), BK):
        k = first + step
        if ROWS:
            acc = multiply_int8(acc, x, w, k, K, BK // 2, EVEN, SWAP)
            acc = multiply_int8(acc, x, w, k + BK // 2, K, BK // 2, EVEN, SWAP)
        else:
            acc = multiply_int8(acc, x, w, k, K, BK, EVEN, SWAP)
    if SWAP:
        acc = tl.trans(acc)
    return acc


@triton.jit
def sum_groups_int8(
    x_ptr, x_scale_ptr, x_scale_pitch, w_ptr, rows, w_rows, K, GROUPS,
    STEPS: tl.constexpr, SWAP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """sum_g float(acc[m, n, g]) * sx[m, g], fp32 [BM, BN]. STEPS: tiles of K in a group of x."""
    x = x_ptr + rows.to(tl.int64)[:, None] * K
    w = w_ptr + w_rows.to(tl.int64)[:, None] * K
    scales = x_scale_ptr + rows.to(tl.int64) * x_scale_pitch
    total = tl.zeros((BN, BM) if SWAP else (BM, BN), tl.float32)
    for g in range(arithmetic.end_of(GROUPS)):
        acc = tl.zeros((BN, BM) if SWAP else (BM, BN), tl.int32)
        for step in tl.static_range(STEPS):
            acc = multiply_int8(acc, x, w, (g * STEPS + step) * BK, K, BK, True, SWAP)
        scale = tl.load(scales + g)
        scale = scale[None, :] if SWAP else scale[:, None]
        # a product of two codes is 2^14 at most: sums of 255 of them stay below 2^22
        total = arithmetic.add_scaled(total, acc, scale, STEPS * BK < 256)
    if SWAP:
        total = tl.trans(total)
    return total
