"""The GEMM kernels: a main loop of `gemm_int8` or `gemm_int4`, then an epilogue. One kernel for each kind of result.

    y[m, n] = (sum_g float(acc[m, n, g]) * sx[m, g]) * sw[n] + bias[n]

A program makes one tile [BM, BN] of y. Rows beyond M and columns beyond N are loaded from the last valid one and never
stored. `gemm_plans` makes the launches.
"""

import triton
import triton.language as tl

from qvit_kernels import arithmetic, epilogues
from qvit_kernels.gemm_int4 import sum_groups_int4, sum_int4
from qvit_kernels.gemm_int8 import sum_groups_int8, sum_int8

# pyright: reportArgumentType=false

# No address has a divisor in common with the rows of a batch: one binary for every M, where Triton would make one each
# for 1, for multiples of 16 and for the rest.
_of_any_batch = triton.jit(do_not_specialize=["M"])


@triton.jit
def column_order(BN: tl.constexpr, SPREAD: tl.constexpr):
    """Which column of the tile each row of the weight tile is, [BN].

    SPREAD: the order in which a thread that holds one row of an mma accumulator holds 32 neighbouring columns. An
    accumulator [16, 8n] keeps columns 8i + 2t and 8i + 2t + 1 in thread t of four; this gives it 32t .. 32t + 31.
    """
    p = tl.arange(0, BN)
    if SPREAD:
        return p % 8 // 2 * (BN // 4) + p // 8 * 2 + p % 2
    else:
        return p


@triton.jit
def in_order(total, BM: tl.constexpr, BN: tl.constexpr, SPREAD: tl.constexpr):
    """A tile whose columns came in `column_order`, with its columns in order: registers only get other names."""
    if SPREAD:
        parts = tl.permute(tl.reshape(total, (BM, BN // 8, 4, 2)), (0, 2, 1, 3))
        total = tl.reshape(parts, (BM, BN))
    return total


@triton.jit
def sum_columns(
    x_ptr, w_ptr, m_ptr, rows, w_rows, first, count, K,
    W4: tl.constexpr, X4: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr,
    EVEN: tl.constexpr, SWAP: tl.constexpr, ROWS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The tile of integer sums over the columns first .. first + count, int32 [BM, BN], columns in `column_order`."""
    if W4:
        acc = sum_int4(
            x_ptr, w_ptr, m_ptr, rows, w_rows, first, count, K,
            X4, WIDTH, SPAN, EVEN, SWAP, ROWS, BM, BN, BK,
        )  # fmt: skip
    else:
        acc = sum_int8(x_ptr, w_ptr, rows, w_rows, first, count, K, EVEN, SWAP, ROWS, BM, BN, BK)
    return acc


@triton.jit
def rescale(
    acc, x_scale_ptr, x_scale_pitch, rows,
    W4: tl.constexpr, X4: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """float(acc) * sx[m], fp32 [BM, BN]. What is packed and has no multipliers came as 16 * code: the power of two is
    taken back with the scale, which is at least 2^-100, exactly.
    """
    UNIT: tl.constexpr = (0.0625 if X4 else 1.0) * (0.0625 if W4 and WIDTH == 0 else 1.0)
    scale = tl.load(x_scale_ptr + rows.to(tl.int64) * x_scale_pitch) * UNIT
    return acc.to(tl.float32) * scale[:, None]


@triton.jit
def multiply(
    x_ptr, x_scale_ptr, x_scale_pitch, w_ptr, m_ptr, rows, w_rows, K, GROUPS,
    W4: tl.constexpr, X4: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr,
    STEPS: tl.constexpr, EVEN: tl.constexpr, SWAP: tl.constexpr, ROWS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPREAD: tl.constexpr,
):  # fmt: skip
    """The tile sum_g float(acc[m, n, g]) * sx[m, g], fp32 [BM, BN]. rows: [BM]; w_rows: [BN], in `column_order`; STEPS:
    tiles of K in a group of x, 0 where all of K is one group.
    """
    if STEPS == 0:
        acc = sum_columns(
            x_ptr, w_ptr, m_ptr, rows, w_rows, 0, K, K,
            W4, X4, WIDTH, SPAN, EVEN, SWAP, ROWS, BM, BN, BK,
        )  # fmt: skip
        total = rescale(acc, x_scale_ptr, x_scale_pitch, rows, W4, X4, WIDTH)
    elif W4:
        total = sum_groups_int4(
            x_ptr, x_scale_ptr, x_scale_pitch, w_ptr, m_ptr, rows, w_rows, K, GROUPS,
            X4, WIDTH, SPAN, STEPS, SWAP, BM, BN, BK,
        )  # fmt: skip
    else:
        total = sum_groups_int8(
            x_ptr, x_scale_ptr, x_scale_pitch, w_ptr, rows, w_rows, K, GROUPS,
            STEPS, SWAP, BM, BN, BK,
        )  # fmt: skip
    return in_order(total, BM, BN, SPREAD)


@triton.jit
def collect(acc, sums_ptr, arrivals_ptr, SPLITS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """The sum of what SPLITS programs have for one tile, and whether this is the last of them, [BM, BN] all alike: only
    it has the sum.

    Integers: the order in which they arrive changes nothing. All that was written is taken back to zero. The barrier
    and the counter together make the sums of a program's threads visible before its arrival is.
    """
    tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    at = sums_ptr + tile.to(tl.int64) * (BM * BN)
    at = at + tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
    tl.atomic_add(at, acc, sem="relaxed")
    tl.debug_barrier()
    before = tl.atomic_add(arrivals_ptr + tile, 1, sem="acq_rel")
    # not a scalar: the interpreter of Triton 3.9 takes none for the mask of a tile
    last = tl.full((BM, BN), 0, tl.int32) + before == SPLITS - 1
    # from the second-level cache, where the sums are
    total = tl.load(at, mask=last, other=0, cache_modifier=".cg")
    tl.debug_barrier()  # the thread that puts a zero back need not be the one that has read there
    tl.store(at, tl.zeros((BM, BN), tl.int32), mask=last)
    tl.store(arrivals_ptr + tile, 0, mask=before == SPLITS - 1)
    return total, last


@_of_any_batch
def linear_kernel(
    x_ptr, x_scale_ptr, w_ptr, m_ptr, w_scale_ptr, bias_ptr, residual_ptr, y_ptr,
    sums_ptr, arrivals_ptr,
    M, N, K, GROUPS, x_scale_pitch,
    GELU: tl.constexpr, TANH: tl.constexpr, SPLITS: tl.constexpr,
    W4: tl.constexpr, X4: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr,
    STEPS: tl.constexpr, EVEN: tl.constexpr, SWAP: tl.constexpr, ROWS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPREAD: tl.constexpr,
):  # fmt: skip
    """y [M, N], fp32; GELU of it; or added to the residual [M, N] in fp32 and rounded to its dtype.

    SPLITS: programs, along the third axis of the grid, that share the columns of K; the last to arrive does the rest.
    """
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    n = tl.program_id(0) * BN
    rows = tl.minimum(m, M - 1)
    w_rows = tl.minimum(n + column_order(BN, SPREAD), N - 1)
    if SPLITS == 1:
        total = multiply(
            x_ptr, x_scale_ptr, x_scale_pitch, w_ptr, m_ptr, rows, w_rows, K, GROUPS,
            W4, X4, WIDTH, SPAN, STEPS, EVEN, SWAP, ROWS, BM, BN, BK, SPREAD,
        )  # fmt: skip
    else:
        count = tl.multiple_of(K // SPLITS, BK)
        acc = sum_columns(
            x_ptr, w_ptr, m_ptr, rows, w_rows, tl.program_id(2) * count, count, K,
            W4, X4, WIDTH, SPAN, EVEN, SWAP, ROWS, BM, BN, BK,
        )  # fmt: skip
        acc, last = collect(acc, sums_ptr, arrivals_ptr, SPLITS, BM, BN)
        total = rescale(acc, x_scale_ptr, x_scale_pitch, rows, W4, X4, WIDTH)
        total = in_order(total, BM, BN, SPREAD)
    columns = n + tl.arange(0, BN)
    y = epilogues.finish_product(total, w_scale_ptr, bias_ptr, tl.minimum(columns, N - 1))
    if GELU:
        y = arithmetic.gelu(y, TANH)
    place = m.to(tl.int64)[:, None] * N + columns[None, :]
    inside = (m < M)[:, None] & (columns < N)[None, :]
    if SPLITS > 1:
        inside = inside & last
    if residual_ptr is not None:
        y = tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32) + y
    tl.store(y_ptr + place, arithmetic.round_to(y, y_ptr.dtype.element_ty), mask=inside)


@_of_any_batch
def embed_kernel(
    x_ptr, x_scale_ptr, w_ptr, m_ptr, w_scale_ptr, bias_ptr, prefix_ptr, positions_ptr, y_ptr,
    M, T, BEFORE, SKIPPED, N, K, GROUPS, x_scale_pitch,
    W4: tl.constexpr, X4: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr,
    STEPS: tl.constexpr, EVEN: tl.constexpr, SWAP: tl.constexpr, ROWS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPREAD: tl.constexpr,
):  # fmt: skip
    """y [M, N] of images of T tokens: BEFORE of them from prefix [BEFORE, N], the others products of rows of x; then
    positions [T - SKIPPED, N] added to all but the first SKIPPED in fp32, and rounded to the dtype of y.
    """
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    n = tl.program_id(0) * BN
    valid_m = tl.minimum(m, M - 1)
    token = valid_m % T
    rows = valid_m // T * (T - BEFORE) + tl.maximum(token - BEFORE, 0)
    w_rows = tl.minimum(n + column_order(BN, SPREAD), N - 1)
    total = multiply(
        x_ptr, x_scale_ptr, x_scale_pitch, w_ptr, m_ptr, rows, w_rows, K, GROUPS,
        W4, X4, WIDTH, SPAN, STEPS, EVEN, SWAP, ROWS, BM, BN, BK, SPREAD,
    )  # fmt: skip
    columns = n + tl.arange(0, BN)
    valid = tl.minimum(columns, N - 1)
    y = epilogues.finish_product(total, w_scale_ptr, bias_ptr, valid)
    if prefix_ptr is not None:
        first = (token < BEFORE)[:, None]
        given = tl.load(prefix_ptr + token[:, None] * N + valid[None, :], mask=first, other=0.0)
        y = tl.where(first, given, y)
    if positions_ptr is not None:
        at = token - SKIPPED
        placed = (at >= 0)[:, None]
        y += tl.load(positions_ptr + at[:, None] * N + valid[None, :], mask=placed, other=0.0)
    place = m.to(tl.int64)[:, None] * N + columns[None, :]
    inside = (m < M)[:, None] & (columns < N)[None, :]
    tl.store(y_ptr + place, arithmetic.round_to(y, y_ptr.dtype.element_ty), mask=inside)


@_of_any_batch
def gelu_quantize_kernel(
    x_ptr, x_scale_ptr, w_ptr, m_ptr, w_scale_ptr, bias_ptr, signs_ptr, static_ptr, codes_ptr, scale_ptr,
    M, N, K, GROUPS, x_scale_pitch, tokens,
    TANH: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr, GROUP: tl.constexpr,
    STEPS_Q: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, PACKED: tl.constexpr, PREFIX: tl.constexpr,
    W4: tl.constexpr, X4: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr,
    STEPS: tl.constexpr, EVEN: tl.constexpr, SWAP: tl.constexpr, ROWS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPREAD: tl.constexpr,
):  # fmt: skip
    """GELU of y, the block transform, then quantized by GROUP columns: codes int8 [M, N] or packed uint8 [M, N / 2],
    scale fp32 [M, N / GROUP], or none where static_ptr has those of all rows, [N / GROUP]; GROUP 0:
    one for the tensor. PREFIX: rows of every `tokens`, the first, that have 8 bits; tokens is None without.
    """
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    n = tl.program_id(0) * BN
    rows = tl.minimum(m, M - 1)
    w_rows = tl.minimum(n + column_order(BN, SPREAD), N - 1)
    total = multiply(
        x_ptr, x_scale_ptr, x_scale_pitch, w_ptr, m_ptr, rows, w_rows, K, GROUPS,
        W4, X4, WIDTH, SPAN, STEPS, EVEN, SWAP, ROWS, BM, BN, BK, SPREAD,
    )  # fmt: skip
    columns = n + tl.arange(0, BN)
    valid = tl.minimum(columns, N - 1)
    y = arithmetic.gelu(epilogues.finish_product(total, w_scale_ptr, bias_ptr, valid), TANH)
    y = epilogues.turn_blocks(y, signs_ptr, valid, BM, BN, BLOCK, NORM)
    if static_ptr is not None:
        # one scale for the tensor: a vector of them spilled 24 bytes on sm_100
        groups = valid // GROUP if GROUP else tl.zeros((1,), tl.int32)
        codes = epilogues.quantize_columns(y, static_ptr, groups, LOW, HIGH)
    else:
        narrow = None
        if PREFIX:
            narrow = arithmetic.narrow_rows(m, tokens, PREFIX)
        codes, scale = epilogues.quantize_groups(
            y, BM, BN, GROUP, STEPS_Q, LOW, HIGH, HIGH < 127, narrow
        )
        groups = n // GROUP + tl.arange(0, BN // GROUP)
        place = m.to(tl.int64)[:, None] * (N // GROUP) + groups[None, :]
        tl.store(scale_ptr + place, scale, mask=(m < M)[:, None] & (groups < N // GROUP)[None, :])
    if PACKED:
        codes = epilogues.pack_halves(codes, BM, BN)
        pairs = n // 2 + tl.arange(0, BN // 2)
        place = m.to(tl.int64)[:, None] * (N // 2) + pairs[None, :]
        tl.store(codes_ptr + place, codes, mask=(m < M)[:, None] & (pairs < N // 2)[None, :])
    else:
        place = m.to(tl.int64)[:, None] * N + columns[None, :]
        tl.store(codes_ptr + place, codes, mask=(m < M)[:, None] & (columns < N)[None, :])


@_of_any_batch
def qkv_kernel(
    x_ptr, x_scale_ptr, w_ptr, m_ptr, w_scale_ptr, bias_ptr,
    q_norm_ptr, q_shift_ptr, k_norm_ptr, k_shift_ptr, signs_ptr,
    q_ptr, q_scale_ptr, k_ptr, k_scale_ptr, v_ptr, v_scale_ptr,
    M, T, H, K, GROUPS, x_scale_pitch, v_pitch, eps,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr,
    STEPS_Q: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    W4: tl.constexpr, X4: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr,
    STEPS: tl.constexpr, EVEN: tl.constexpr, SWAP: tl.constexpr, ROWS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPREAD: tl.constexpr,
):  # fmt: skip
    """Whole heads of Q, K or V, each token of each head quantized. A head of D channels takes DP columns of a tile.

    Q and K: int8 [B, H, T, D]; V: int8 [B, H, D, v_pitch]; scales: fp32 [B, H, T].
    """
    HEADS: tl.constexpr = BN // DP
    tiles = (H + HEADS - 1) // HEADS
    part = tl.program_id(0) // tiles
    head = tl.program_id(0) % tiles * HEADS
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    rows = tl.minimum(m, M - 1)
    order = column_order(BN, SPREAD)
    w_rows = (part * H + tl.minimum(head + order // DP, H - 1)) * D + tl.minimum(order % DP, D - 1)
    total = multiply(
        x_ptr, x_scale_ptr, x_scale_pitch, w_ptr, m_ptr, rows, w_rows, K, GROUPS,
        W4, X4, WIDTH, SPAN, STEPS, EVEN, SWAP, ROWS, BM, BN, BK, SPREAD,
    )  # fmt: skip
    column = tl.arange(0, BN)
    heads = head + column // DP
    channel = column % DP
    valid = (part * H + tl.minimum(heads, H - 1)) * D + tl.minimum(channel, D - 1)
    y = epilogues.finish_product(total, w_scale_ptr, bias_ptr, valid)
    if q_norm_ptr is not None:  # noqa: SIM102 - a constant: no code without norms
        if part < 2:
            gain = q_norm_ptr if part == 0 else k_norm_ptr
            shift = q_shift_ptr if part == 0 else k_shift_ptr
            y = epilogues.normalize_groups(y, gain, shift, channel, eps, D, BM, HEADS, DP)
            y = epilogues.turn_blocks(y, signs_ptr, tl.minimum(channel, D - 1), BM, BN, BLOCK, NORM)
    codes, scale = epilogues.quantize_groups(
        tl.where((channel < D)[None, :], y, 0.0), BM, BN, DP, STEPS_Q, LOW, HIGH, False
    )
    # [B, H, T] of a row m = b * T + t, at head 0
    token = (m // T).to(tl.int64) * H * T + m % T
    at = heads.to(tl.int64) * T
    inside = (m < M)[:, None] & (heads < H)[None, :] & (channel < D)[None, :]
    if part < 2:
        base = q_ptr if part == 0 else k_ptr
        rowwise = (token[:, None] + at[None, :]) * D + channel[None, :]
        tl.store(base + rowwise, codes, mask=inside)
    else:
        # turned, so that neighbouring threads store neighbouring tokens
        image = (m // T).to(tl.int64) * H * D * v_pitch + m % T
        turned = (heads.to(tl.int64) * D + channel)[:, None] * v_pitch + image[None, :]
        tl.store(v_ptr + turned, codes.T, mask=inside.T)
    head_index = head + tl.arange(0, HEADS)
    place = token[:, None] + head_index.to(tl.int64)[None, :] * T
    scales = q_scale_ptr if part == 0 else (k_scale_ptr if part == 1 else v_scale_ptr)
    tl.store(scales + place, scale, mask=(m < M)[:, None] & (head_index < H)[None, :])
