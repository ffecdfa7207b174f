"""The main loops of int4 weights: packed w [N, K / 2] with x int8 [M, K] (W4A8) or packed x [M, K / 2] (W4A4).

The math is int8: hardware with int4 tensor cores ended with sm_89, and Triton has none. Nibbles are widened in
registers between the load and the dot. A tile of BK columns is BK / 2 bytes; the low nibbles of a tile and its high
nibbles are one dot each, and x is taken in the same order of columns (`packing`: byte j of a block of 64 columns holds
columns j and j + 32).

A nibble without a multiplier is left in the upper half of its byte, which makes it 16 * code: a shift and two masks for
eight codes, no sign to extend; the power of two is taken back with the scale, exactly. With a multiplier m of -15..15
four codes become code * m in one register by
    u = (p & 0x0F0F0F0F) ^ 0x08080808              code + 8 in each byte, one LOP3
    ((u * m) + (0x80808080 - 0x08080808 * m)) ^ 0x80808080       code * m + 128 in each byte: no borrows; IMAD, LOP3
"""

import triton
import triton.language as tl

from qvit_kernels import arithmetic

# pyright: reportArgumentType=false


_LOW_16: tl.constexpr = tl.constexpr(
    "{ .reg .b32 t; shl.b32 t, $1, 4; and.b32 $0, t, 0xF0F0F0F0; }"
)
_HIGH_16: tl.constexpr = tl.constexpr("and.b32 $0, $1, 0xF0F0F0F0;")
# 0x6A: (a & b) ^ c. $2: m, $6: the constant that goes with it, each four times for the four bytes.
_TIMES: tl.constexpr = tl.constexpr(
    "lop3.b32 t, t, 0x0F0F0F0F, 0x08080808, 0x6A; mad.lo.s32 t, t, $2, $6; xor.b32 $0, t, 0x80808080; }"
)
_LOW_TIMES: tl.constexpr = tl.constexpr("{ .reg .b32 t; mov.b32 t, $1; " + _TIMES.value)
_HIGH_TIMES: tl.constexpr = tl.constexpr("{ .reg .b32 t; shr.u32 t, $1, 4; " + _TIMES.value)


@triton.jit
def widen(packed, HIGH: tl.constexpr):
    """16 * code of the low or the high nibbles. packed: int8 [R, B]; returns int8 [R, B]."""
    if arithmetic.COMPILED:
        return tl.inline_asm_elementwise(
            _HIGH_16 if HIGH else _LOW_16, "=r,r", [packed], dtype=tl.int8, is_pure=True, pack=4
        )
    else:
        return (packed if HIGH else packed << 4) & -16


@triton.jit
def widen_times(packed, multiplier, HIGH: tl.constexpr):
    """code * multiplier of the low or the high nibbles. packed: int8 [R, B]; multiplier: int32 [R, B / SPAN], one for
    SPAN neighbouring bytes, SPAN a multiple of 4; returns int8 [R, B].

    The four bytes of a register share the multiplier of the first: `packed` must have come from rows that the compiler
    knows to start at multiples of 4 bytes, else it deals out single bytes and a register holds four rows.
    """
    R: tl.constexpr = packed.shape[0]
    B: tl.constexpr = packed.shape[1]
    SPAN: tl.constexpr = B // multiplier.shape[1]
    shape: tl.constexpr = (R, B // SPAN, SPAN)
    m = tl.reshape(tl.broadcast_to(multiplier[:, :, None], shape), (R, B))
    if arithmetic.COMPILED:
        offset = -2139062144 - 0x08080808 * multiplier  # 0x80808080 as int32
        offset = tl.reshape(tl.broadcast_to(offset[:, :, None], shape), (R, B))
        return tl.inline_asm_elementwise(
            _HIGH_TIMES if HIGH else _LOW_TIMES,
            "=r,r,r,r,r,r,r,r,r,r", [packed, m, offset], dtype=tl.int8, is_pure=True, pack=4,
        )  # fmt: skip
    else:
        code = (packed if HIGH else packed << 4) >> 4
        return (code.to(tl.int32) * m).to(tl.int8)


@triton.jit
def nibble_columns(j, k, K, EVEN: tl.constexpr):
    """Columns of the low and of the high nibble of the bytes k / 2 + j of a row of K columns, and the end of the low
    ones in their block: `packing`'s halves, 32 columns each but in a last block that is shorter.
    """
    first = k + j // 32 * 64
    low = first + j % 32
    if EVEN:
        return low, low + 32, first + 32
    else:
        half = tl.minimum(tl.maximum(K - first + 1, 0) // 2, 32)
        return low, low + half, first + half


@triton.jit
def multiply_int4(
    acc, x_rows, w_rows, m_rows, k, K,
    X4: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr,
    BK: tl.constexpr, EVEN: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    """acc plus the products of the columns k .. k + BK, BK a multiple of 64.

    x_rows, w_rows, m_rows: pointers to the starts of the rows of x (packed where X4), w and the multipliers, [R, 1].
    WIDTH: columns that share a multiplier, 0 for none; SPAN: neighbouring bytes of a tile's row that do.
    """
    j = tl.arange(0, BK // 2)[None, :]
    low, high, end = nibble_columns(j, k, K, EVEN)
    if EVEN:
        w = tl.load(w_rows + (k // 2 + j))
    else:
        w = tl.load(w_rows + (k // 2 + j), mask=low < end, other=0)
    if X4:
        if EVEN:
            x = tl.load(x_rows + (k // 2 + j))
        else:
            x = tl.load(x_rows + (k // 2 + j), mask=low < end, other=0)
        x_low = widen(x, False)
        x_high = widen(x, True)
    elif EVEN:
        x_low = tl.load(x_rows + low)
        x_high = tl.load(x_rows + high)
    else:
        x_low = tl.load(x_rows + low, mask=low < end, other=0)
        x_high = tl.load(x_rows + high, mask=(low < end) & (high < K), other=0)
    w_low, w_high = widen_weights(w, m_rows, k, K, WIDTH, SPAN, BK, EVEN)
    if SWAP:
        acc = tl.dot(w_low, x_low.T, acc, out_dtype=tl.int32)
        acc = tl.dot(w_high, x_high.T, acc, out_dtype=tl.int32)
    else:
        acc = tl.dot(x_low, w_low.T, acc, out_dtype=tl.int32)
        acc = tl.dot(x_high, w_high.T, acc, out_dtype=tl.int32)
    return acc


@triton.jit
def widen_weights(
    w, m_rows, k, K, WIDTH: tl.constexpr, SPAN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr
):
    """int8 of the low and of the high nibbles of a tile w [BN, BK / 2]: 16 * code, or code * multiplier."""
    if WIDTH == 0:
        return widen(w, False), widen(w, True)
    else:
        i = (tl.arange(0, BK // 2 // SPAN) * SPAN)[None, :]
        low, high, end = nibble_columns(i, k, K, EVEN)
        if EVEN:
            m_low = tl.load(m_rows + low // WIDTH)
            m_high = tl.load(m_rows + high // WIDTH)
        else:
            m_low = tl.load(m_rows + low // WIDTH, mask=low < end, other=0)
            m_high = tl.load(m_rows + high // WIDTH, mask=low < end, other=0)
        return widen_times(w, m_low.to(tl.int32), False), widen_times(w, m_high.to(tl.int32), True)


@triton.jit
def rows_of(
    x_ptr, w_ptr, m_ptr, rows, w_rows, K,
    X4: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Pointers to the starts of the rows of x, w and the multipliers, [R, 1] each. m_ptr: None for WIDTH 0.

    The compiler is to see that rows start at multiples of 16 bytes: it loads 16 at a time then, and `widen_times`
    depends on it. Multipliers come with multiples of 32 columns.
    """
    if EVEN:
        pitch = K // 64 * 32
    elif WIDTH != 0:
        pitch = K // 32 * 16
    else:
        pitch = (K + 1) // 2
    x = x_ptr + rows.to(tl.int64)[:, None] * (pitch if X4 else K)
    w = w_ptr + w_rows.to(tl.int64)[:, None] * pitch
    m = w if WIDTH == 0 else m_ptr + w_rows.to(tl.int64)[:, None] * (K // WIDTH)
    return x, w, m


@triton.jit
def sum_int4(
    x_ptr, w_ptr, m_ptr, rows, w_rows, first, count, K,
    X4: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr,
    EVEN: tl.constexpr, SWAP: tl.constexpr, ROWS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """`gemm_int8.sum_int8` of 16 * codes where a side is packed and has no multipliers, int32 [BM, BN].

    ROWS: an accumulator made as [BN, BM] is turned by two products with zeros, which Triton lays out with warps along M
    alone: a thread then holds a quarter of a row. It costs 4 instructions a value, and an epilogue over rows 25 fewer.
    """
    x, w, m = rows_of(x_ptr, w_ptr, m_ptr, rows, w_rows, K, X4, WIDTH, EVEN)
    acc = tl.zeros((BN, BM) if SWAP else (BM, BN), tl.int32)
    for step in range(0, arithmetic.end_of(count), BK):
        acc = multiply_int4(acc, x, w, m, first + step, K, X4, WIDTH, SPAN, BK, EVEN, SWAP)
    if SWAP:
        acc = tl.trans(acc)
        if ROWS:
            zeros = tl.zeros((BN, 32), tl.int8).T
            acc = tl.dot(tl.zeros((BM, 32), tl.int8), zeros, acc, out_dtype=tl.int32)
            acc = tl.dot(tl.zeros((BM, 32), tl.int8), zeros, acc, out_dtype=tl.int32)
    return acc


@triton.jit
def sum_groups_int4(
    x_ptr, x_scale_ptr, x_scale_pitch, w_ptr, m_ptr, rows, w_rows, K, GROUPS,
    X4: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr,
    STEPS: tl.constexpr, SWAP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """`gemm_int8.sum_groups_int8`; 16 * code is taken back with the scale, as `gemm.rescale` does."""
    UNIT: tl.constexpr = (0.0625 if X4 else 1.0) * (0.0625 if WIDTH == 0 else 1.0)
    x, w, m = rows_of(x_ptr, w_ptr, m_ptr, rows, w_rows, K, X4, WIDTH, True)
    scales = x_scale_ptr + rows.to(tl.int64) * x_scale_pitch
    total = tl.zeros((BN, BM) if SWAP else (BM, BN), tl.float32)
    for g in range(arithmetic.end_of(GROUPS)):
        acc = tl.zeros((BN, BM) if SWAP else (BM, BN), tl.int32)
        for step in tl.static_range(STEPS):
            k = (g * STEPS + step) * BK
            acc = multiply_int4(acc, x, w, m, k, K, X4, WIDTH, SPAN, BK, True, SWAP)
        scale = tl.load(scales + g) * UNIT
        scale = scale[None, :] if SWAP else scale[:, None]
        # sums of 255 products of two bytes stay below 2^22
        total = arithmetic.add_scaled(total, acc, scale, STEPS * BK < 256)
    if SWAP:
        total = tl.trans(total)
    return total
