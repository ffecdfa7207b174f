"""The arithmetic in Triton: device functions that every kernel is built from, twins of those in `reference.py`.

Kernels are launched with `enable_fp_fusion=False`, so that a product and a sum stay two rounded operations. Nothing
here uses libdevice: the same text runs in Triton's interpreter. What is not the same there is behind COMPILED.
"""

import triton
import triton.language as tl

from qvit_kernels import reference

# False in the interpreter, which has no inline assembly and truncates where hardware rounds to bf16.
COMPILED: tl.constexpr = tl.constexpr(not triton.knobs.runtime.interpret)

# Adding 1.5 * 2^23 to |x| < 2^22 leaves rint(x), half to even, in the low bits of the sum.
_MAGIC: tl.constexpr = tl.constexpr(12582912.0)
_MAGIC_BITS: tl.constexpr = tl.constexpr(0x4B400000)
_TINY: tl.constexpr = tl.constexpr(reference.TINY)
_HALF_LOG2_E: tl.constexpr = tl.constexpr(0.5 * reference.LOG2_E)

# E(a) = 0.5 * erfc(a / sqrt 2) = t * P(t) * exp(-a^2 / 2), t = 1 / (1 + 0.34 a): the form of Abramowitz and Stegun
# 7.1.26 with coefficients fitted to the error of a * E(a), which is 7e-8 at most; in fp32 with its own roundings GELU
# is off by 2.5e-7 at most (torch's fp32 erf: 1.2e-6).
_GELU_SLOPE: tl.constexpr = tl.constexpr(0.34)
_GELU_0: tl.constexpr = tl.constexpr(0.12949561)
_GELU_1: tl.constexpr = tl.constexpr(0.18536529)
_GELU_2: tl.constexpr = tl.constexpr(-0.03838251)
_GELU_3: tl.constexpr = tl.constexpr(0.32940476)
_GELU_4: tl.constexpr = tl.constexpr(-0.10588456)
# 2 * sqrt(2 / pi) * log2(e), and times 0.044715
_TANH_1: tl.constexpr = tl.constexpr(2.302208198144325)
_TANH_3: tl.constexpr = tl.constexpr(0.1029432397)


@triton.jit
def end_of(count):
    """A count that is no constant, as the end of a loop.

    Triton 3.6's interpreter makes no int of its tensors under numpy 2.4. A constant would do, but a loop of few
    steps is unrolled then: 966 instructions and not 368 for fc2 of one image, 8 bytes of spills for fc1 (sm_90).
    """
    if COMPILED:
        return count
    else:
        return count.handle.data.item()


@triton.jit
def narrow_rows(row, tokens, PREFIX: tl.constexpr):
    """Which rows have the grid's bits, and not 8: all but the first PREFIX of every `tokens`.

    Called where there is a PREFIX alone: Triton 3.6 compiles no function that returns None.
    """
    return row % tokens >= PREFIX


@triton.jit
def _beside(narrow, x):
    """`narrow` [rows] with as many axes as x, of which the rows are the first."""
    for _ in tl.static_range(len(x.shape) - 1):
        narrow = tl.expand_dims(narrow, -1)
    return narrow


@triton.jit
def scale_of(amax, STEPS: tl.constexpr, narrow=None):
    """`reference.scale_of`: NaN of NaN too, which a maximum on a GPU would turn into the smallest scale."""
    steps = tl.full(amax.shape, STEPS, tl.float32)
    if narrow is not None:
        steps = tl.where(_beside(narrow, steps), steps, 127.0)
    scale = tl.div_rn(amax, steps)
    return tl.maximum(scale, _TINY, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def reach_of(tiles, BEGIN: tl.constexpr, COUNT: tl.constexpr, SIGNED: tl.constexpr):
    """The largest and the smallest of COUNT tiles, value by value; without a sign the largest magnitude, twice."""
    if SIGNED:
        high = tiles[BEGIN]
        low = tiles[BEGIN]
        for i in tl.static_range(1, COUNT):
            high = tl.maximum(high, tiles[BEGIN + i])
            low = tl.minimum(low, tiles[BEGIN + i])
    else:
        high = tl.abs(tiles[BEGIN])
        for i in tl.static_range(1, COUNT):
            high = tl.maximum(high, tl.abs(tiles[BEGIN + i]))
        low = high
    return high, low


@triton.jit
def reached_scale(
    high, low, AXIS: tl.constexpr, FACTOR: tl.constexpr, STEPS: tl.constexpr, SIGNED: tl.constexpr, narrow=None
):  # fmt: skip
    """`reference.signed_scale_of` of FACTOR (a power of two, positive) times values that reach from low to high; rows
    that are not `narrow`, [rows] or None, have 8 bits.
    """
    top = tl.max(high, AXIS)
    if SIGNED:
        return signed_scale_of(top, -tl.min(low, AXIS), FACTOR, STEPS, narrow)
    else:
        return scale_of(top * FACTOR, STEPS)


@triton.jit
def signed_scale_of(top, bottom, FACTOR: tl.constexpr, STEPS: tl.constexpr, narrow):
    """`reference.signed_scale_of` of FACTOR times rows that reach from -bottom to top: with the sign that puts the
    extreme on the lowest code, if it is positive; rows that are not `narrow` keep theirs.
    """
    scale = scale_of(tl.maximum(top, bottom) * FACTOR, STEPS, narrow)
    positive = top > bottom
    if narrow is not None:
        positive = positive & _beside(narrow, positive)
    return tl.where(positive, -scale, scale)


@triton.jit
def reciprocal(scale):
    """1 / scale, correctly rounded: what `reference.quantize` multiplies with."""
    return tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale)


@triton.jit
def codes_of(x, inverse, LOW: tl.constexpr, HIGH: tl.constexpr, CLAMP: tl.constexpr, narrow=None):
    """int8 codes of x on a grid: rint(x * inverse), saturating unless CLAMP is False (dynamic 8 bits never leave)."""
    y = x * inverse
    if narrow is not None:
        inside = _beside(narrow, y)
        y = tl.minimum(tl.maximum(y, tl.where(inside, LOW, -127.0)), tl.where(inside, HIGH, 127.0))
    elif CLAMP:
        y = tl.minimum(tl.maximum(y, LOW), HIGH)
    return (y + _MAGIC).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def small_int_to_float(x):
    """int32 of |x| < 2^22 to float, by an integer and a float addition: conversions run at a quarter of their rate."""
    return (x + _MAGIC_BITS).to(tl.float32, bitcast=True) - _MAGIC


@triton.jit
def gelu(x, TANH: tl.constexpr):
    """GELU: 13 instructions, two of them of the special function unit, where erf takes 42."""
    if TANH:
        # exp2 up to 2^100: the reciprocal stays normal, and x below -7 gives zero at any rate
        power = tl.minimum(-x * ((x * x) * _TANH_3 + _TANH_1), 100.0)
        return x * approximate_reciprocal(tl.exp2(power) + 1.0)
    a = tl.abs(x)
    slope = tl.full(a.shape, _GELU_SLOPE, tl.float32)
    t = approximate_reciprocal(tl.fma(a, slope, tl.full(a.shape, 1.0, tl.float32)))
    p = tl.fma(t, tl.full(a.shape, _GELU_4, tl.float32), tl.full(a.shape, _GELU_3, tl.float32))
    p = tl.fma(p, t, tl.full(a.shape, _GELU_2, tl.float32))
    p = tl.fma(p, t, tl.full(a.shape, _GELU_1, tl.float32))
    p = tl.fma(p, t, tl.full(a.shape, _GELU_0, tl.float32))
    tail = (p * t) * tl.exp2((x * x) * -_HALF_LOG2_E)
    return tl.fma(-a, tail, tl.maximum(x, 0.0))


@triton.jit
def block_hadamard(
    x, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr
):
    """`reference.block_transform` without the signs, on a tile [ROWS, COLUMNS]: a butterfly whose additions have the
    reference's order. BLOCK: a power of two; NORM: 1 / sqrt(BLOCK).
    """
    for i in tl.static_range(
        12
    ):  # a constexpr cannot be doubled in a loop: it cannot be assigned twice
        if (1 << i) < BLOCK:
            x = _butterfly(x, ROWS, COLUMNS, 1 << i)
    return x * NORM


@triton.jit
def _butterfly(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr):
    pairs = tl.reshape(x, (ROWS, COLUMNS // (2 * STEP), 2, STEP))
    low, high = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
    pairs = tl.permute(tl.join(low + high, low - high), (0, 1, 3, 2))
    return tl.reshape(pairs, (ROWS, COLUMNS))


@triton.jit
def add_scaled(total, acc, scale, SMALL: tl.constexpr):
    """total + float(acc) * scale, two rounded operations; acc: int32, below 2^22 where SMALL says so."""
    if SMALL:
        return total + small_int_to_float(acc) * scale
    else:
        return total + acc.to(tl.float32) * scale


@triton.jit
def round_to(x, DTYPE: tl.constexpr):
    """fp32 to DTYPE, half to even."""
    if tl.bfloat16 == DTYPE and not COMPILED:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def approximate_reciprocal(x):
    """1 / x to one ulp, x normal: one instruction. `1.0 / x` guards the ends of the range with eight."""
    if COMPILED:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x
