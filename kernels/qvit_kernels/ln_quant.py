"""LayerNorm, block Hadamard and quantization of rows in one launch: a value is read once, and written once, as a code.

A row lies in the registers of a few neighbouring lanes, cut as `row_tiling` says. At K = 384 with a transform of 64
that takes 27 instructions a value and no shared memory, where tiles butterflied as a whole took 64 (sm_80).
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from qvit_kernels.arithmetic import (
    block_hadamard,
    codes_of,
    narrow_rows,
    reach_of,
    reached_scale,
    reciprocal,
)
from qvit_kernels.launching import Launch
from qvit_kernels.packing import BLOCK as PACKING_BLOCK
from qvit_kernels.reference import code_range, steps_of
from qvit_kernels.row_tiling import Tiling, choose_tiling
from qvit_kernels.storage import empty_rows


@triton.jit
def _columns(I: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr, SPAN: tl.constexpr):
    """Columns of tile I of a row, [WIDTH]."""
    PART: tl.constexpr = SPAN // PIECES
    column = tl.arange(0, WIDTH)
    first = (I // PIECES) * (WIDTH * PIECES) + (I % PIECES) * PART
    return first + column // PART * SPAN + column % PART


@triton.jit
def _bytes(I: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr, SPAN: tl.constexpr):
    """Packed bytes of the columns of tile I, all in lower halves of blocks of 64, [WIDTH].

    Not _columns // 64 * 32 + _columns % 32, which would hide from the compiler what lies side by side.
    """
    PART: tl.constexpr = SPAN // PIECES
    column = tl.arange(0, WIDTH)
    start: tl.constexpr = (I % PIECES) * PART
    first = (I // PIECES) * (WIDTH * PIECES // 2) + start // 64 * 32 + start % 32
    return first + column // PART * (SPAN // 2) + column % PART


@triton.jit
def _mask(row, rows, at, K: tl.constexpr, RAGGED: tl.constexpr):
    """What of a tile exists. The columns are asked only where the tiles reach beyond K (RAGGED)."""
    if RAGGED:
        return (row < rows)[:, None] & (at < K)[None, :]
    else:
        return (row < rows)[:, None]


@triton.jit
def _load_vector(vector, at, K: tl.constexpr, RAGGED: tl.constexpr):
    """Columns `at` of a vector as a row, zero beyond K."""
    if RAGGED:
        return tl.load(vector + at, mask=at < K, other=0.0)[None, :]
    else:
        return tl.load(vector + at)[None, :]


@triton.jit
def _normalize(
    values, weight, bias, eps,
    K: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    TILES: tl.constexpr, PIECES: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """LayerNorm of the tiles of rows; a column beyond K becomes zero."""
    RAGGED: tl.constexpr = TILES * WIDTH > K
    total = values[0]
    for i in tl.static_range(1, TILES):
        total += values[i]
    mean = (tl.sum(total, 1) * (1.0 / K))[:, None]
    square = tl.zeros((ROWS, WIDTH), tl.float32)
    for i in tl.static_range(TILES):
        difference = values[i] - mean
        if RAGGED:
            inside = (_columns(i, WIDTH, PIECES, SPAN) < K)[None, :]
            difference = tl.where(inside, difference, 0.0)
        square += difference * difference
    deviation = tl.sqrt_rn(tl.sum(square, 1) * (1.0 / K) + eps)
    inverse = tl.div_rn(tl.full((ROWS,), 1.0, tl.float32), deviation)[:, None]
    results = ()
    for i in tl.static_range(TILES):
        at = _columns(i, WIDTH, PIECES, SPAN)
        w = _load_vector(weight, at, K, RAGGED)
        b = _load_vector(bias, at, K, RAGGED)
        results = results + ((values[i] - mean) * inverse * w + b,)
    return results


@triton.jit
def _turn_tile(
    x, ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr
):
    """The butterfly of every BLOCK columns of a tile, not scaled: in a lane within its 16 bytes, else by exchange.

    The layout survives an exchange if the axis it gathers along is that of the lanes, and nothing goes through shared
    memory. The fma with one factor of +-1 rounds once, like the sum or difference that it is.
    """
    NEAR: tl.constexpr = min(BLOCK, VECTOR)
    FAR: tl.constexpr = BLOCK // NEAR
    x = tl.reshape(x, (ROWS * WIDTH // NEAR, NEAR))
    x = block_hadamard(x, ROWS * WIDTH // NEAR, NEAR, NEAR, 1.0)
    if FAR > 1:
        x = tl.reshape(x, (ROWS * WIDTH // BLOCK, FAR, NEAR))
        lane = tl.arange(0, FAR)[None, :, None]
        for i in tl.static_range(12):
            if (1 << i) < FAR:
                other = tl.gather(x, tl.broadcast_to(lane ^ (1 << i), x.shape), 1)
                sign = tl.where((lane & (1 << i)) == 0, 1.0, -1.0)
                x = tl.fma(x, tl.broadcast_to(sign, x.shape), other)
    return tl.reshape(x, (ROWS, WIDTH))


@triton.jit
def _turn(
    values, signs,
    K: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    TILES: tl.constexpr, PIECES: tl.constexpr, SPAN: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Signs and the butterfly of every BLOCK columns of the row, not scaled."""
    PART: tl.constexpr = SPAN // PIECES
    turned = ()
    for i in tl.static_range(TILES):
        at = _columns(i, WIDTH, PIECES, SPAN)
        signed = values[i] * _load_vector(signs, at, K, TILES * WIDTH > K)
        turned = turned + (_turn_tile(signed, ROWS, WIDTH, min(BLOCK, PART), VECTOR),)
    for t in tl.static_range(6):
        if PART << t < BLOCK:
            paired = ()
            for i in tl.static_range(TILES):
                if (i & (1 << t)) == 0:
                    paired = paired + (turned[i] + turned[i + (1 << t)],)
                else:
                    paired = paired + (turned[i - (1 << t)] - turned[i],)
            turned = paired
    return turned


@triton.jit
def _store_codes(
    codes, values, inverse, row, rows, narrow,
    I: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr,
    TILES: tl.constexpr, PIECES: tl.constexpr, SPAN: tl.constexpr,
    PACKED: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, CLAMP: tl.constexpr,
):  # fmt: skip
    """Quantize and write tile I; PACKED: with the tile 32 columns further, which by itself writes nothing.

    narrow: [rows], or None.
    """
    PART: tl.constexpr = SPAN // PIECES
    at = _columns(I, WIDTH, PIECES, SPAN)
    mask = _mask(row, rows, at, K, TILES * WIDTH > K)
    q = codes_of(values[I], inverse, LOW, HIGH, CLAMP, narrow)
    if not PACKED:
        tl.store(codes + row[:, None] * K + at[None, :], q, mask=mask)
    elif I * PART % 64 < 32:
        high = codes_of(values[I + 32 // PART], inverse, LOW, HIGH, CLAMP)
        byte = ((q & 15) | (high << 4)).to(tl.uint8, bitcast=True)
        at = _bytes(I, WIDTH, PIECES, SPAN)
        tl.store(codes + row[:, None] * (K // 2) + at[None, :], byte, mask=mask)


@triton.jit
def _quantize_whole(
    codes, scale, values, row, rows, narrow,
    K: tl.constexpr, WIDTH: tl.constexpr, TILES: tl.constexpr, PIECES: tl.constexpr,
    SPAN: tl.constexpr, FACTOR: tl.constexpr, STEPS: tl.constexpr,
    PACKED: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
):  # fmt: skip
    """Scales and codes of FACTOR * values, a scale for each row."""
    high, low = reach_of(values, 0, TILES, HIGH < 127)
    step = reached_scale(high, low, 1, FACTOR, STEPS, HIGH < 127, narrow)
    tl.store(scale + row, step, mask=row < rows)
    inverse = (reciprocal(step) * FACTOR)[:, None]
    for i in tl.static_range(TILES):
        _store_codes(
            codes, values, inverse, row, rows, narrow,
            i, K, WIDTH, TILES, PIECES, SPAN, PACKED, LOW, HIGH, HIGH < 127,
        )  # fmt: skip


@triton.jit
def _quantize_groups(
    codes, scale, values, row, rows, narrow,
    K: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    TILES: tl.constexpr, PIECES: tl.constexpr, SPAN: tl.constexpr,
    FACTOR: tl.constexpr, STEPS: tl.constexpr,
    PACKED: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
):  # fmt: skip
    """Scales and codes of FACTOR * values, a scale for every GROUP columns: WITHIN of each of TOGETHER pieces."""
    PART: tl.constexpr = SPAN // PIECES
    TOGETHER: tl.constexpr = max(1, min(PIECES, GROUP // PART))
    WITHIN: tl.constexpr = GROUP // TOGETHER
    for q in tl.static_range(TILES // TOGETHER):
        high, low = reach_of(values, q * TOGETHER, TOGETHER, HIGH < 127)
        high = tl.reshape(high, (ROWS, WIDTH // WITHIN, WITHIN))
        low = tl.reshape(low, (ROWS, WIDTH // WITHIN, WITHIN))
        step = reached_scale(high, low, 2, FACTOR, STEPS, HIGH < 127, narrow)
        begin = tl.arange(0, WIDTH // WITHIN) * WITHIN
        at = q * TOGETHER // PIECES * (WIDTH * PIECES) + q * TOGETHER % PIECES * PART
        at = (at + begin // PART * SPAN + begin % PART) // GROUP
        mask = _mask(row, rows, at, K // GROUP, TILES * WIDTH > K)
        tl.store(scale + row[:, None] * (K // GROUP) + at[None, :], step, mask=mask)
        inverse = (reciprocal(step) * FACTOR)[:, :, None]
        inverse = tl.broadcast_to(inverse, (ROWS, WIDTH // WITHIN, WITHIN))
        inverse = tl.reshape(inverse, (ROWS, WIDTH))
        for i in tl.static_range(TOGETHER):
            _store_codes(
                codes, values, inverse, row, rows, narrow,
                q * TOGETHER + i, K, WIDTH, TILES, PIECES, SPAN, PACKED, LOW, HIGH, HIGH < 127,
            )  # fmt: skip


@triton.jit
def _quantize_static(
    codes, static, values, row, rows,
    K: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, TILES: tl.constexpr,
    PIECES: tl.constexpr, SPAN: tl.constexpr, FACTOR: tl.constexpr,
    PACKED: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
):  # fmt: skip
    """Codes of FACTOR * values by the scales that every GROUP columns have in all rows, fp32 [K / GROUP]."""
    for i in tl.static_range(TILES):
        group = _columns(i, WIDTH, PIECES, SPAN) // GROUP
        inverse = reciprocal(_load_vector(static, group, K // GROUP, TILES * WIDTH > K)) * FACTOR
        _store_codes(
            codes, values, inverse, row, rows, None,
            i, K, WIDTH, TILES, PIECES, SPAN, PACKED, LOW, HIGH, True,
        )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])  # one binary for all batches: only a mask reads it
def quantize_rows_kernel(
    # x [rows, K], rows row_stride apart; weight, bias, signs: fp32 [K] or None
    x, row_stride, weight, bias, signs,
    # codes int8 [rows, K] or uint8 [rows, K / 2]; scale fp32 [rows, K / GROUP]; static fp32 [K / GROUP] or None
    codes, scale, static, rows, eps,
    # rows of an image, of which the first PREFIX have 8 bits; None for 0 of them
    tokens,
    # what is computed; NORM: 1 / sqrt(BLOCK), FOLDED where that is a power of two
    K: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr, FOLDED: tl.constexpr,
    GROUP: tl.constexpr, STEPS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    PACKED: tl.constexpr, PREFIX: tl.constexpr,
    # how
    ROWS: tl.constexpr, WIDTH: tl.constexpr, CHUNKS: tl.constexpr, PIECES: tl.constexpr,
    SPAN: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Rows ROWS * program_id(0) and following."""
    TILES: tl.constexpr = CHUNKS * PIECES
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    values = ()
    for i in tl.static_range(TILES):
        at = _columns(i, WIDTH, PIECES, SPAN)
        mask = _mask(row, rows, at, K, TILES * WIDTH > K)
        tile = tl.load(x + row[:, None] * row_stride + at[None, :], mask=mask, other=0.0)
        values = values + (tile.to(tl.float32),)
    if weight is not None:
        values = _normalize(values, weight, bias, eps, K, ROWS, WIDTH, TILES, PIECES, SPAN)
    if BLOCK > 1:
        values = _turn(values, signs, K, BLOCK, ROWS, WIDTH, TILES, PIECES, SPAN, VECTOR)
    if not FOLDED:
        scaled = ()
        for i in tl.static_range(TILES):
            scaled = scaled + (values[i] * NORM,)
        values = scaled
    # A power of two may as well multiply a row's scale and its reciprocal as every value: nothing rounds.
    FACTOR: tl.constexpr = NORM if FOLDED else 1.0
    narrow = None
    if PREFIX:
        narrow = narrow_rows(row, tokens, PREFIX)
    if static is not None:
        _quantize_static(
            codes, static, values, row, rows,
            K, K if GROUP == 0 else GROUP, WIDTH, TILES, PIECES, SPAN, FACTOR, PACKED, LOW, HIGH,
        )  # fmt: skip
    elif GROUP == 0:
        _quantize_whole(
            codes, scale, values, row, rows, narrow,
            K, WIDTH, TILES, PIECES, SPAN, FACTOR, STEPS, PACKED, LOW, HIGH,
        )  # fmt: skip
    else:
        _quantize_groups(
            codes, scale, values, row, rows, narrow,
            K, GROUP, ROWS, WIDTH, TILES, PIECES, SPAN, FACTOR, STEPS, PACKED, LOW, HIGH,
        )  # fmt: skip


def supports(x: Tensor, signs: Tensor | None, block: int, group: int, packed: bool) -> str | None:
    """Why these arguments cannot run in the kernel, None if they can."""
    k = x.shape[-1]
    if signs is not None and block & (block - 1):
        return f"a transform of {block} channels, not a power of two"
    if packed and k % PACKING_BLOCK:
        return f"packed rows of {k} values, not a multiple of {PACKING_BLOCK}"
    if group not in (0, k):
        if group & (group - 1):
            return f"groups of {group} values, not a power of two"
        if packed and group < PACKING_BLOCK:
            return f"packed codes in groups of {group}, below {PACKING_BLOCK}"
    if _tiling_of(x, signs, block, group, packed) is None:
        return f"rows of {k} values, more than the registers of a program hold"
    return None


def plan(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    signs: Tensor | None,
    block: int,
    bits: int,
    group: int,
    packed: bool,
    static_scale: Tensor | None = None,
    prefix: int = 0,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Launch, tuple[Tensor, Tensor]]:
    """The launch of `composed.layernorm_quantize`, without a weight of `composed.quantize_rows`, and what it fills.

    x: fp32, bf16 or fp16 [..., K]; weight, bias, signs: fp32 [K]. Returns codes int8 [..., K] or uint8 [..., K / 2],
    and scale fp32 [..., K / group]; out: memory for them, contiguous.
    """
    k = x.shape[-1]
    group = 0 if group == k else group
    tiling = _tiling_of(x, signs, block, group, packed)
    if tiling is None:
        raise ValueError(supports(x, signs, block, group, packed))
    block = block if signs is not None else 1
    flat = _as_rows(x)
    static = static_scale is not None
    codes, scale = out or empty_rows(x.shape[:-1], k, group, packed, x.device, static=static)
    low, high = code_range(bits)
    arguments = {
        "x": flat, "row_stride": flat.stride(0),
        "weight": None if weight is None else weight.contiguous(),
        "bias": None if bias is None else bias.contiguous(),
        "signs": None if signs is None else signs.contiguous(),
        "codes": codes, "scale": scale,
        "static": None if static_scale is None else static_scale.contiguous(),
        "rows": flat.shape[0], "eps": eps, "tokens": x.shape[-2] if prefix else None,
        "K": k, "BLOCK": block, "NORM": 1.0 / math.sqrt(block), "FOLDED": block.bit_length() % 2 == 1,
        "GROUP": group, "STEPS": steps_of(bits), "LOW": low, "HIGH": high, "PACKED": packed, "PREFIX": prefix,
        "ROWS": tiling.rows, "WIDTH": tiling.width, "CHUNKS": tiling.chunks,
        "PIECES": tiling.pieces, "SPAN": tiling.span, "VECTOR": tiling.vector,
    }  # fmt: skip
    programs = math.ceil(flat.shape[0] / tiling.rows)
    # Left to itself ptxas fits 24 values a lane into 64 registers for sm_86 and sm_89, and spills four (Triton 3.6);
    # into 96 it fits them for sm_90 and later by spilling two (3.9). They take 119 to 124.
    options = {"maxnreg": 128} if tiling.warps >= 8 and tiling.values <= 24 else {}
    launch = Launch(quantize_rows_kernel, (programs,), arguments, tiling.warps, options=options)
    return launch, (codes, scale)


def _tiling_of(
    x: Tensor, signs: Tensor | None, block: int, group: int, packed: bool
) -> Tiling | None:
    k = x.shape[-1]
    rows, group = math.prod(x.shape[:-1]), 0 if group == k else group
    return choose_tiling(
        rows, k, x.element_size(), block if signs is not None else 1, group, packed
    )


def _as_rows(x: Tensor) -> Tensor:
    """x as [rows, K] with neighbouring columns: a view where x allows one, as the class tokens of a batch do."""
    flat = x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return flat if flat.stride(1) == 1 or flat.shape[1] == 1 else flat.contiguous()
