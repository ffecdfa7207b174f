"""The LayerNorm and quantize kernel in Triton's interpreter against the reference."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qvit_kernels import composed, ln_quant, reference
from qvit_kernels.packing import unpack_int4
from qvit_kernels.reference import code_range, steps_of

ROWS = [0, 1, 16, 17, 197]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
# (K, transform, bits, group, packed); 96 and 576 make tiles reach beyond a row that has groups or a transform
GRIDS = [
    (32, 0, 8, 0, False),
    (32, 16, 8, 16, False),
    (64, 64, 4, 0, True),
    (96, 32, 8, 32, False),
    (100, 0, 8, 0, False),
    (192, 64, 8, 0, False),
    (192, 64, 4, 64, True),
    (384, 16, 4, 128, True),
    (384, 64, 4, 16, False),
    (384, 128, 8, 0, False),
    (576, 64, 4, 64, True),
    (768, 32, 8, 128, False),
    (768, 0, 4, 0, True),
]
WIDE = [(1024, 64, 8, 0, False), (1280, 64, 4, 0, True), (4304, 16, 8, 0, False)]
CANARY = 64


def signs_of(k: int, block: int) -> Tensor | None:
    return torch.randint(0, 2, (k,)).float() * 2 - 1 if block else None


def guarded(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Poisoned memory of a shape with CANARY values on both sides, and all of it."""
    count = math.prod(shape)
    memory = torch.empty(count + 2 * CANARY, dtype=dtype)
    return memory[CANARY : CANARY + count].view(shape), memory


def assert_untouched(memory: Tensor) -> None:
    fresh = torch.empty_like(memory)
    for part in (slice(0, CANARY), slice(-CANARY, None)):
        assert torch.equal(memory[part].view(torch.uint8), fresh[part].view(torch.uint8))


def run(
    x: Tensor,
    norm: tuple[Tensor, Tensor] | None,
    signs: Tensor | None,
    block: int,
    bits: int,
    group: int,
    packed: bool,
) -> tuple[Tensor, Tensor]:
    """The kernel's results; it must write all of them and nothing else."""
    k = x.shape[-1]
    assert ln_quant.supports(x, signs, block, group, packed) is None
    stored = k // 2 if packed else k
    codes, codes_memory = guarded((*x.shape[:-1], stored), torch.uint8 if packed else torch.int8)
    scale, scale_memory = guarded((*x.shape[:-1], k // (group or k)), torch.float32)
    weight, bias = norm or (None, None)
    launch, out = ln_quant.plan(
        x, weight, bias, 1e-6, signs, block, bits, group, packed, out=(codes, scale)
    )
    assert out[0] is codes
    assert out[1] is scale
    launch.run()
    assert_untouched(codes_memory)
    assert_untouched(scale_memory)
    return codes, scale


def assert_rows_equal(
    x: Tensor, signs: Tensor | None, block: int, bits: int, group: int, packed: bool
) -> None:
    got = run(x, None, signs, block, bits, group, packed)
    expected = composed.quantize_rows(x, signs, block, bits, group, packed)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def assert_norm_agrees(
    x: Tensor, signs: Tensor | None, block: int, bits: int, group: int, packed: bool
) -> None:
    """Scales equal to some ulp, codes off by one step at most, and only where a value lies on a rounding boundary."""
    k = x.shape[-1]
    norm = (torch.rand(k) + 0.5, torch.randn(k))
    codes, scale = run(x, norm, signs, block, bits, group, packed)
    expected, expected_scale = composed.layernorm_quantize(
        x, *norm, 1e-6, signs, block, bits, group, packed
    )
    torch.testing.assert_close(scale, expected_scale, rtol=1e-6, atol=0)
    if packed:
        codes, expected = unpack_int4(codes, k), unpack_int4(expected, k)
    off = (codes.int() - expected.int()).abs()
    assert off.numel() == 0 or int(off.max()) <= 1
    y = reference.block_transform(
        reference.layer_norm(x, *norm, 1e-6), composed.transform_of(signs, block)
    )
    steps = y / expected_scale.repeat_interleave(group or k, -1)
    to_boundary = (steps - steps.floor() - 0.5).abs()
    assert bool((to_boundary[off == 1] < 1e-4).all())
    if bits == 8:
        assert int(off.sum()) <= 1e-5 * off.numel() + 1


@pytest.mark.parametrize(("k", "block", "bits", "group", "packed"), GRIDS)
@pytest.mark.parametrize("dtype", FLOATS[:2])
def test_quantize_rows_is_the_reference(k, block, bits, group, packed, dtype):
    x = torch.randn(17, k).to(dtype)
    assert_rows_equal(x, signs_of(k, block), block, bits, group, packed)


@pytest.mark.parametrize(("k", "block", "bits", "group", "packed"), GRIDS)
@pytest.mark.parametrize("dtype", FLOATS[:2])
def test_layernorm_quantize_agrees(k, block, bits, group, packed, dtype):
    x = (torch.randn(17, k) * 3 + 1).to(dtype)
    assert_norm_agrees(x, signs_of(k, block), block, bits, group, packed)


@pytest.mark.slow
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("k", "block", "bits", "group", "packed"), GRIDS + WIDE)
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_grid_and_count_of_rows(rows, k, block, bits, group, packed, dtype):
    x = (torch.randn(rows, k) * 3 + 1).to(dtype)
    assert_rows_equal(x, signs_of(k, block), block, bits, group, packed)
    assert_norm_agrees(x, signs_of(k, block), block, bits, group, packed)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_rows(rows, dtype):
    x = torch.randn(rows, 192).to(dtype)
    assert_rows_equal(x, signs_of(192, 64), 64, 8, 0, False)
    assert_norm_agrees(x, signs_of(192, 64), 64, 8, 0, False)


@pytest.mark.parametrize(("k", "block", "bits", "group", "packed"), WIDE)
def test_wide_rows(k, block, bits, group, packed):
    assert_rows_equal(torch.randn(3, k), signs_of(k, block), block, bits, group, packed)
    assert_norm_agrees(torch.randn(3, k), signs_of(k, block), block, bits, group, packed)


def test_tilings_of_many_rows():
    """With many rows a lane holds more of a row: the tiling differs, the result must not."""
    many = torch.empty(2**20 // 384 + 1, 384, device="meta")
    few = torch.randn(5, 384)
    signs = signs_of(384, 64)
    for packed, bits in ((False, 8), (True, 4)):
        arguments = (signs, 64, bits, 0, packed)
        wanted, _ = ln_quant.plan(many, None, None, 0.0, *arguments)
        launch, out = ln_quant.plan(few, None, None, 0.0, *arguments)
        tiling = ("ROWS", "WIDTH", "CHUNKS", "PIECES", "SPAN", "VECTOR")
        assert any(wanted.arguments[name] != launch.arguments[name] for name in tiling)
        launch.arguments.update({name: wanted.arguments[name] for name in tiling})
        assert launch.grid == (1,)
        assert launch.arguments["ROWS"] >= 5
        launch.run()
        expected = composed.quantize_rows(few, *arguments)
        assert torch.equal(out[0], expected[0])
        assert torch.equal(out[1], expected[1])


@pytest.mark.parametrize("k", [100, 192])
def test_strides_do_not_matter(k):
    """Views with NaN around them: a value read beyond the row would spread to all of it."""
    memory = torch.full((6, 3, k + 12), math.nan)
    views = [memory[:, 1, :k], memory[:, :2, 4 : k + 4], memory[0, :, :k]]
    views.append(torch.full((k, 10), math.nan).t()[2:7])
    for view in views:
        view.copy_(torch.randn(view.shape))
        block = 64 if k == 192 else 0
        assert_rows_equal(view, signs_of(k, block), block, 8, 0, False)
        assert_norm_agrees(view, signs_of(k, block), block, 8, 0, False)


def test_class_tokens_are_read_in_place():
    x = torch.randn(4, 9, 192)
    launch, _ = ln_quant.plan(x[:, 0], None, None, 0.0, None, 0, 8, 0, False)
    assert launch.arguments["x"].data_ptr() == x.data_ptr()
    assert launch.arguments["row_stride"] == 9 * 192


def test_vectors_may_be_strided():
    x, k = torch.randn(3, 64), 64
    weight, bias, signs = (torch.randn(k, 2)[:, 0] for _ in range(3))
    signs = torch.where(signs > 0, 1.0, -1.0).repeat_interleave(2)[::2]
    launch, (codes, scale) = ln_quant.plan(x, weight, bias, 1e-6, signs, 16, 8, 0, False)
    launch.run()
    expected = composed.layernorm_quantize(x, weight, bias, 1e-6, signs, 16, 8, 0, False)
    assert torch.equal(codes, expected[0])
    torch.testing.assert_close(scale, expected[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("packed", [False, True])
def test_ties_and_saturation(packed):
    """Halves on a grid of step 1: to even, both ends saturating; a row of nothing but an extreme."""
    bits = 4 if packed else 8
    top = steps_of(bits)
    x = torch.arange(-64, 64).float().view(2, 64) + 0.5 if bits == 8 else torch.zeros(2, 64)
    if bits == 4:
        x[:] = (torch.arange(-16, 16) / 2.0).clamp(-top, top).repeat(2)
    x[0, 0], x[1, 0] = top, -top
    codes, scale = run(x, None, None, 0, bits, 0, packed)
    signs = torch.tensor(
        [[-1.0 if packed else 1.0], [1.0]]
    )  # a positive extreme turns a grid of few bits
    assert torch.equal(scale, signs)
    codes = unpack_int4(codes, 64) if packed else codes
    low, high = code_range(bits)
    assert torch.equal(codes.float(), (x * signs).round().clamp(low, high))
    assert int(codes[0, 0]) == (low if packed else high)
    assert int(codes[1, 0]) == low
    for extreme in (top, -top):
        assert_rows_equal(torch.full((3, 64), extreme), None, 0, bits, 0, packed)


def test_zero_and_constant_rows():
    x = torch.randn(4, 192)
    x[1], x[2] = 0.0, 5.0
    for block in (0, 64):
        signs = signs_of(192, block)
        assert_rows_equal(x, signs, block, 8, 0, False)
        assert_rows_equal(x, signs, block, 4, 64, True)
        assert_norm_agrees(x, signs, block, 8, 0, False)
    codes, scale = run(x[1:2], None, None, 0, 8, 0, False)
    assert scale.item() == reference.TINY
    assert not codes.any()
    flat = (torch.ones(192), torch.zeros(192))
    codes, scale = run(x[2:3], flat, None, 0, 8, 0, False)  # a norm that leaves nothing
    assert scale.item() == reference.TINY
    assert not codes.any()


@pytest.mark.parametrize("magnitude", [2.0**-140, 2.0**-110, 2.0**100])
def test_extreme_magnitudes(magnitude):
    """The norm of the butterfly is folded into the scale where it is a power of two: also near the ends of fp32."""
    for block in (16, 32, 64):
        x = torch.randn(4, 64) * magnitude
        assert_rows_equal(x, signs_of(64, block), block, 8, 0, False)


def test_epsilon_counts():
    """Rows whose variance is no larger than epsilon."""
    assert_norm_agrees(torch.randn(5, 192) * 1e-3, None, 0, 8, 0, False)


def test_a_norm_that_is_no_power_of_two_multiplies_values():
    """Folded into the scale, 1 / sqrt(2) would turn these codes into their neighbours."""
    norm, top = torch.tensor(0.5).sqrt(), 3.7
    x = torch.linspace(0.01, top, 2**23)
    inverse = reference.scale_of(torch.tensor([top]) * norm, 127.0).reciprocal()
    picked = x[(x * norm * inverse).round() != (x * (norm * inverse)).round()][:63]
    assert len(picked) >= 4
    row = torch.zeros(1, 128)
    row[0, 0], row[0, 2 : 2 + 2 * len(picked) : 2] = top, picked
    assert_rows_equal(row, torch.ones(128), 2, 8, 0, False)


@given(
    st.integers(1, 9),
    st.sampled_from([32, 48, 64, 96, 128, 192, 320]),
    st.sampled_from([0, 2, 4, 8, 16, 32, 64]),
    st.sampled_from([0, 4, 16, 32, 64]),
    st.integers(2, 8),
    st.sampled_from(FLOATS),
)
def test_any_grid(rows, k, block, group, bits, dtype):
    block, group = (size if size and k % size == 0 else 0 for size in (block, group))
    x = torch.randn(rows, k).to(dtype)
    packed = bits <= 4 and k % 64 == 0 and (not group or group >= 64)
    assert_rows_equal(x, signs_of(k, block), block, bits, group, packed)


def test_what_is_not_supported():
    x, signs = torch.randn(2, 192), torch.ones(192)
    assert ln_quant.supports(x, None, 0, 0, True) is None
    assert ln_quant.supports(x, None, 0, 192, False) is None  # one group is a row
    reasons = [
        ln_quant.supports(x, signs, 48, 0, False),
        ln_quant.supports(x, None, 0, 96, False),
        ln_quant.supports(x, None, 0, 32, True),
        ln_quant.supports(x[:, :96], None, 0, 0, True),
        ln_quant.supports(torch.empty(1, 2**16, device="meta"), None, 0, 0, False),
    ]
    assert all(reasons)
    assert len(set(reasons)) == len(reasons)


def test_one_group_is_a_row():
    assert_rows_equal(torch.randn(3, 192), None, 0, 8, 192, False)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's numpy
@pytest.mark.parametrize("bits", [4, 8])
def test_nan_stays_visible(bits):
    """A row with NaN or infinity has NaN for its scale, and the others are as without it."""
    x = torch.randn(5, 192)
    clean = x.clone()
    x[1, 3], x[3, 7] = math.nan, math.inf
    results = []
    for rows in (x, clean):
        launch, result = ln_quant.plan(
            rows, torch.ones(192), torch.zeros(192), 1e-6, None, 0, bits, 0, False
        )
        launch.run()
        results.append(result)
    (codes, scale), (expected, expected_scale) = results
    assert scale.isnan().flatten().tolist() == [False, True, False, True, False]
    assert torch.equal(codes[::2], expected[::2])
    assert torch.equal(scale[::2], expected_scale[::2])


@pytest.mark.parametrize(("tokens", "registers"), [(197, 128), (12608, None)])
def test_few_long_rows_may_have_registers_enough(tokens, registers):
    """24 values a lane of 8 warps, which ptxas would fit into 64 of sm_86 by spilling."""
    x = torch.empty(tokens, 768, device="meta")
    launch, _ = ln_quant.plan(x, None, None, 1e-6, signs_of(768, 64), 64, 8, 0, False)
    assert launch.options.get("maxnreg") == registers
