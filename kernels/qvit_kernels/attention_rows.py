"""One head of quantized attention for BLOCK_M tokens: its rows of logits in registers, or computed in three passes.

The arguments are those of `attention_logits`. Both return the integer sums of P V, a tuple of tiles int32
[BLOCK_M, columns] (OUT cuts the channels), and their scale, fp32 [BLOCK_M].
"""

import triton
import triton.language as tl

from qvit_kernels.arithmetic import codes_of, reciprocal, scale_of
from qvit_kernels.attention_logits import add_products, logits_of, weigh, zero_sums


@triton.jit
def head_in_registers(
    queries, keys, values, tokens,
    QMAX: tl.constexpr, CHUNKS: tl.constexpr, FOLD: tl.constexpr, BEYOND: tl.constexpr,
    WIDTH: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """CHUNKS, as ((start, keys), ...): powers of two, multiples of FOLD, which sum to `tokens` or more.

    BEYOND: to more than the pitch of V.
    """
    LAST: tl.constexpr = len(CHUNKS) - 1
    BLOCK_M: tl.constexpr = queries[2].shape[0]
    parts = ()
    tops = tl.full((BLOCK_M, FOLD), float("-inf"), tl.float32)
    for i in tl.static_range(len(CHUNKS)):
        x = logits_of(queries, keys, CHUNKS[i][0], tokens, CHUNKS[i][1], i == LAST, WIDTH, IN)
        tops = tl.maximum(tops, fold_max(x, FOLD))
        parts = parts + (x,)
    top = tl.max(tops, 1)[:, None]
    divisors = tl.zeros((BLOCK_M, FOLD), tl.float32)
    largest = tl.zeros((BLOCK_M, FOLD), tl.float32)
    weighted = ()
    for i in tl.static_range(len(CHUNKS)):
        numerators = tl.exp2(parts[i] - top)
        divisors += fold_sum(numerators, FOLD)
        w = weigh(numerators, values, CHUNKS[i][0], tokens, i == LAST)
        largest = tl.maximum(largest, fold_max(w, FOLD))
        weighted = weighted + (w,)
    divisor = tl.sum(divisors, 1)
    largest = tl.max(largest, 1)
    scale = scale_of(largest, QMAX)
    inverse = reciprocal(scale)
    sums = zero_sums(BLOCK_M, OUT)
    for i in tl.static_range(len(CHUNKS)):
        codes = codes_of(weighted[i], inverse[:, None], 0.0, QMAX, False)
        sums = add_products(sums, codes, values, CHUNKS[i][0], BEYOND and i == LAST, WIDTH, OUT)
    return sums, tl.div_rn(scale, divisor)


@triton.jit
def fold_max(x, FOLD: tl.constexpr):
    """The maximum of every FOLD-th column, [BLOCK_M, FOLD]: with FOLD as `Tile.quantum` it stays within a thread."""
    if FOLD == 1:
        return tl.max(x, 1, keep_dims=True)
    else:
        return tl.max(tl.reshape(x, (x.shape[0], x.shape[1] // FOLD, FOLD)), 1)


@triton.jit
def fold_sum(x, FOLD: tl.constexpr):
    """As `fold_max`."""
    if FOLD == 1:
        return tl.sum(x, 1, keep_dims=True)
    else:
        return tl.sum(tl.reshape(x, (x.shape[0], x.shape[1] // FOLD, FOLD)), 1)


@triton.jit
def raise_top(
    top, queries, keys, start, tokens,
    CHUNK: tl.constexpr, RAGGED: tl.constexpr, WIDTH: tl.constexpr, IN: tl.constexpr,
):  # fmt: skip
    """First pass: the largest logit of each row."""
    return tl.maximum(
        top, tl.max(logits_of(queries, keys, start, tokens, CHUNK, RAGGED, WIDTH, IN), 1)
    )


@triton.jit
def add_numerators(
    totals, top, queries, keys, values, start, tokens,
    CHUNK: tl.constexpr, RAGGED: tl.constexpr, WIDTH: tl.constexpr, IN: tl.constexpr,
):  # fmt: skip
    """Second pass: the sum of the numerators of each row, and its largest numerator times a scale of V."""
    divisor, largest = totals
    x = logits_of(queries, keys, start, tokens, CHUNK, RAGGED, WIDTH, IN)
    numerators = tl.exp2(x - top[:, None])
    weighted = weigh(numerators, values, start, tokens, RAGGED)
    return divisor + tl.sum(numerators, 1), tl.maximum(largest, tl.max(weighted, 1))


@triton.jit
def add_weighted(
    sums, top, inverse, queries, keys, values, start, tokens,
    CHUNK: tl.constexpr, RAGGED: tl.constexpr,
    WIDTH: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """Third pass: the codes of the numerators, times V."""
    x = logits_of(queries, keys, start, tokens, CHUNK, RAGGED, WIDTH, IN)
    weighted = weigh(tl.exp2(x - top[:, None]), values, start, tokens, RAGGED)
    codes = codes_of(weighted, inverse[:, None], 0.0, 0.0, False)
    return add_products(sums, codes, values, start, False, WIDTH, OUT)


@triton.jit
def head_in_passes(
    queries, keys, values, tokens,
    QMAX: tl.constexpr, STEP: tl.constexpr, WHOLE: tl.constexpr, CHUNKS: tl.constexpr,
    WIDTH: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """Any number of tokens, with Q K^T computed three times: the scale of a row needs its largest weighted numerator,
    and a numerator needs the largest logit. The first WHOLE keys go in steps of STEP; CHUNKS are those after them.
    """
    LAST: tl.constexpr = len(CHUNKS) - 1
    BLOCK_M: tl.constexpr = queries[2].shape[0]
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    for start in range(0, WHOLE, STEP):
        top = raise_top(top, queries, keys, start, tokens, STEP, False, WIDTH, IN)
    for i in tl.static_range(len(CHUNKS)):
        top = raise_top(
            top, queries, keys, WHOLE + CHUNKS[i][0], tokens, CHUNKS[i][1], i == LAST, WIDTH, IN
        )
    totals = (tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M,), tl.float32))
    for start in range(0, WHOLE, STEP):
        totals = add_numerators(
            totals, top, queries, keys, values, start, tokens, STEP, False, WIDTH, IN
        )
    for i in tl.static_range(len(CHUNKS)):
        totals = add_numerators(
            totals, top, queries, keys, values, WHOLE + CHUNKS[i][0], tokens,
            CHUNKS[i][1], i == LAST, WIDTH, IN,
        )  # fmt: skip
    scale = scale_of(totals[1], QMAX)
    inverse = reciprocal(scale)
    sums = zero_sums(BLOCK_M, OUT)
    for start in range(0, WHOLE, STEP):
        sums = add_weighted(
            sums, top, inverse, queries, keys, values, start, tokens, STEP, False, WIDTH, IN, OUT
        )
    for i in tl.static_range(len(CHUNKS)):
        sums = add_weighted(
            sums, top, inverse, queries, keys, values, WHOLE + CHUNKS[i][0], tokens,
            CHUNKS[i][1], i == LAST, WIDTH, IN, OUT,
        )  # fmt: skip
    return sums, tl.div_rn(scale, totals[0])
