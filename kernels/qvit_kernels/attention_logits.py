"""The two products of quantized attention, for some keys of one head: what both forms of the kernel are made of.

A head comes as tuples of what was found for it:
    queries = (tiles of codes, int8 [BLOCK_M, columns]; their scales times the softmax scale and log2(e), fp32
               [BLOCK_M]; rows, int32 [BLOCK_M])
    keys    = (pointers: codes [tokens, WIDTH]; scales [tokens]; bias [tokens, tokens] or None, and where it begins;
               mask, likewise; zero)
    values  = (pointers: codes [WIDTH, pitch]; scales [tokens]; the pitch; zero)
`zero` is one that the compiler does not see through: with it a head's addresses are not the next one's, and are
computed again instead of kept, which cost 23 spilled registers.
PIECES, as ((first, columns), ...), cut the WIDTH channels of a head into powers of two from 32 on, which products take.
"""

import triton
import triton.language as tl

from qvit_kernels import reference

# The accumulator of Q K^T starts here: its bits are then those of the float 12582912 + sum while |sum| < 2^22 (at most
# 2^21 for 128 channels), and a subtraction makes the float. A conversion would run at a quarter of the rate.
_MAGIC: tl.constexpr = tl.constexpr(12582912.0)
_MAGIC_BITS: tl.constexpr = tl.constexpr(0x4B400000)
_LOG2_E: tl.constexpr = tl.constexpr(reference.LOG2_E)
_HIDDEN: tl.constexpr = tl.constexpr(reference.HIDDEN)


@triton.jit
def key_of(column):
    """Which of the keys a column of the logits holds: a permutation within every 16.

    A thread of an int8 tensor core receives the logits of columns 2q, 2q + 1, 2q + 8 and 2q + 9, and must hand over the
    numerators of keys 4q .. 4q + 3. With the keys dealt out so that these are the same, the codes stay in the registers
    in which they were made.
    """
    return column - column % 16 + (column // 2 % 4) * 4 + (column // 8 % 2) * 2 + column % 2


@triton.jit
def in_key_order(x):
    """A tile whose columns are dealt as `key_of` says, in the order of the keys."""
    ROWS: tl.constexpr = x.shape[0]
    COLUMNS: tl.constexpr = x.shape[1]
    dealt = tl.reshape(x, (ROWS, COLUMNS // 16, 2, 4, 2))
    return tl.reshape(tl.permute(dealt, (0, 1, 3, 2, 4)), (ROWS, COLUMNS))


@triton.jit
def load_piece(codes_ptr, rows, WIDTH: tl.constexpr, FIRST: tl.constexpr, COLUMNS: tl.constexpr):
    """Columns FIRST .. FIRST + COLUMNS of rows [R] of codes [*, WIDTH], int8; 0 beyond WIDTH."""
    columns = FIRST + tl.arange(0, COLUMNS)
    at = codes_ptr + rows[:, None] * WIDTH + columns[None, :]
    if FIRST + COLUMNS > WIDTH:
        tile = tl.load(at, mask=columns[None, :] < WIDTH, other=0)
    else:
        tile = tl.load(at)
    return tile


@triton.jit
def load_pieces(codes_ptr, rows, WIDTH: tl.constexpr, PIECES: tl.constexpr):
    """Rows [R] of codes [*, WIDTH], as a tuple of tiles."""
    tiles = ()
    for i in tl.static_range(len(PIECES)):
        tiles = tiles + (load_piece(codes_ptr, rows, WIDTH, PIECES[i][0], PIECES[i][1]),)
    return tiles


@triton.jit
def logits_of(
    queries, keys, start, tokens,
    CHUNK: tl.constexpr, RAGGED: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Logits of keys start .. start + CHUNK times log2(e), fp32 [BLOCK_M, CHUNK], dealt as `key_of` says.

    RAGGED: some of the keys may lie beyond `tokens`; their logits are -inf.
    """
    q, q_scale, rows = queries
    k_ptr, k_scale_ptr, bias_ptr, bias_at, mask_ptr, mask_at, zero = keys
    numbers = start + zero + key_of(tl.arange(0, CHUNK))
    seen = numbers
    if RAGGED:
        seen = tl.minimum(numbers, tokens - 1)
    sums = tl.full((rows.shape[0], CHUNK), _MAGIC_BITS, tl.int32)
    for i in tl.static_range(len(PIECES)):
        k = load_piece(k_ptr, seen, WIDTH, PIECES[i][0], PIECES[i][1])
        sums = tl.dot(q[i], k.T, sums, out_dtype=tl.int32)
    logits = (sums.to(tl.float32, bitcast=True) - _MAGIC) * q_scale[:, None]
    logits = logits * tl.load(k_scale_ptr + seen)[None, :]
    pairs = rows[:, None] * tokens + seen[None, :]
    if bias_ptr is not None:
        logits = logits + tl.load(bias_ptr + bias_at + pairs) * _LOG2_E
    if mask_ptr is not None:
        logits = tl.where(tl.load(mask_ptr + mask_at + pairs) != 0, logits, _HIDDEN)
    if RAGGED:
        logits = tl.where((numbers < tokens)[None, :], logits, float("-inf"))
    return logits


@triton.jit
def weigh(numerators, values, start, tokens, RAGGED: tl.constexpr):
    """Numerators of keys start .. times the scales of V."""
    _, v_scale_ptr, _, zero = values
    numbers = start + zero + key_of(tl.arange(0, numerators.shape[1]))
    if RAGGED:
        numbers = tl.minimum(numbers, tokens - 1)
    return numerators * tl.load(v_scale_ptr + numbers)[None, :]


@triton.jit
def zero_tile(ROWS: tl.constexpr, COLUMNS: tl.constexpr, DTYPE: tl.constexpr):
    """Zeros, [ROWS, COLUMNS]. A function, because Triton 3.6 takes no size out of a nested tuple where it is used."""
    return tl.zeros((ROWS, COLUMNS), DTYPE)


@triton.jit
def zero_sums(BLOCK_M: tl.constexpr, PIECES: tl.constexpr):
    """A tuple of tiles, int32 [BLOCK_M, columns]."""
    tiles = ()
    for i in tl.static_range(len(PIECES)):
        tiles = tiles + (zero_tile(BLOCK_M, PIECES[i][1], tl.int32),)
    return tiles


@triton.jit
def add_products(
    sums, codes, values, start,
    RAGGED: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """`sums` plus the products of the numerators' codes with V.

    codes: int8 [BLOCK_M, CHUNK], dealt as `key_of` says; 0 where there is no key, which is what the padding of V is
    multiplied by. RAGGED: the keys may reach beyond the pitch of V.
    """
    v_ptr, _, v_pitch, zero = values
    ordered = in_key_order(codes)
    if codes.shape[1] == 16:  # a product sums over 32 keys at least
        ordered = tl.permute(tl.join(ordered, tl.zeros_like(ordered)), (0, 2, 1))
        ordered = tl.reshape(ordered, (codes.shape[0], 32))
    numbers = start + tl.arange(0, ordered.shape[1])
    added = ()
    for i in tl.static_range(len(PIECES)):
        channels = PIECES[i][0] + zero + tl.arange(0, PIECES[i][1])
        at = v_ptr + channels[:, None] * v_pitch + numbers[None, :]
        if RAGGED or PIECES[i][0] + PIECES[i][1] > WIDTH:
            inside = (channels < WIDTH)[:, None] & (numbers < v_pitch)[None, :]
            v = tl.load(at, mask=inside, other=0)
        else:
            v = tl.load(at)
        added = added + (tl.dot(ordered, v.T, sums[i], out_dtype=tl.int32),)
    return added
