"""The cpu backend against the reference, stage by stage: equal where the formula is exact."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvit_kernels import cpu, ops, reference
from qvit_kernels.ops import Quantized, Weight, use_backend
from qvit_kernels.packing import unpack_int4
from tests.kernels.operands import codes, heads, norm, rows, tensors, transform, weight

pytestmark = pytest.mark.usefixtures("path")

ROWS = [0, 1, 16, 17, 63, 197]
SHAPES = [(384, 1152), (77, 51), (1, 1), (3, 200), (130, 7), (1536, 48)]


def layout(x):
    """The strides that matter."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


def both(call):
    """The results of the two backends, which must have one layout."""
    with use_backend("reference"):
        expected = tensors(call())
    with use_backend("cpu"):
        got = tensors(call())
    for a, b in zip(got, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert layout(a) == layout(b)
    return list(zip(got, expected, strict=True))


def assert_equal(call):
    for got, expected in both(call):
        assert torch.equal(got, expected)


def assert_one_step_at_most(call, share=1e-5):
    """After exp, GELU or a LayerNorm sum: 1e-5 of the codes off by one, the scales by some ulp."""
    for got, expected in both(call):
        if got.dtype == torch.int8:
            off = (got.int() - expected.int()).abs()
            assert bool((off <= 1).all())
            assert int(off.sum()) <= share * off.numel() + 1
        else:
            assert torch.allclose(got, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_linear(m, k, n):
    x, w, bias = rows(m, k), weight(n, k), torch.randn(n)
    assert_equal(lambda: ops.linear(x, w, bias))
    assert_equal(lambda: ops.linear(x, w, None))


@pytest.mark.parametrize(("gx", "gw"), [(4, 1), (1, 4), (8, 4), (4, 8)])
@pytest.mark.parametrize("m", [0, 1, 63])
def test_linear_with_groups(m, gx, gw):
    x, w = rows(m, 1536, groups=gx), weight(72, 1536, groups=gw)
    assert_equal(lambda: ops.linear(x, w, torch.ones(72)))
    packed = weight(72, 1536, groups=gw, packed=True)
    assert_equal(lambda: ops.linear(x, packed, None))


def test_more_rows_than_one_block():
    """1000 rows of 1536 values are four blocks, and no block may see another's rows."""
    x, w = rows(5, 200, 64), weight(1536, 64)
    assert_equal(lambda: ops.linear(x, w, torch.randn(1536, generator=torch.manual_seed(1))))
    assert_one_step_at_most(lambda: ops.linear_gelu_quantize(x, w, None, "none", None, 8, 128))


@pytest.mark.parametrize("k", [9, 65, 1535])
def test_packed_weight_of_odd_width(k):
    x, w = rows(17, k), weight(51, k, packed=True)
    assert_equal(lambda: ops.linear(x, w, None))


@pytest.mark.parametrize("k", [128, 1040, 3072])
@pytest.mark.parametrize(("a", "b"), [(127, 127), (-127, 127), (-128, 127), (-128, -128)])
def test_linear_of_extremes(k, a, b):
    x = Quantized(torch.full((17, k), a, dtype=torch.int8), torch.ones(17, 1))
    w = Weight(torch.full((33, k), b, dtype=torch.int8), torch.ones(33))
    # Uneven, or every sum would be a multiple of a power of two and exact far beyond 2^24.
    w.codes.sub_((codes(33, k) & 1) * (1 if b > 0 else -1))
    assert_equal(lambda: ops.linear(x, w, None))
    expected = (x.codes.to(torch.int64) @ w.codes.to(torch.int64).t()).float()
    with use_backend("cpu"):
        assert torch.equal(ops.linear(x, w, None), expected)


def test_static_scale():
    x = Quantized(codes(2, 9, 48), torch.tensor([[0.02, 0.5]]))
    w = weight(24, 48)
    assert_equal(lambda: ops.linear(x, w, torch.ones(24)))


def test_operands_with_strides():
    x = Quantized(codes(40, 96)[::2, ::3], torch.rand(40, 2)[::2, 1:])
    w = Weight(codes(32, 50).t()[::2], torch.rand(50)[::2])
    assert not x.codes.is_contiguous()
    assert not w.codes.is_contiguous()
    assert_equal(lambda: ops.linear(x, w, torch.arange(50.0)[::2]))
    residual = torch.randn(25, 20).t()
    assert_equal(lambda: ops.linear_residual(x, w, None, residual))
    stream = torch.randn(32, 20, 3).transpose(0, 1)
    assert_equal(lambda: ops.quantize_rows(stream, None, 8))
    q, k, v = (
        Quantized(part.codes.transpose(1, 2), part.scale.transpose(1, 2))
        for part in heads(2, 17, 3, 16)
    )
    assert_one_step_at_most(lambda: ops.attention(q, k, v, 0.25, 8, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("m", ROWS)
def test_linear_residual(m, dtype):
    x, w, residual = rows(m, 77), weight(384, 77), torch.randn(m, 384).to(dtype)
    kept = residual.clone()
    assert_equal(lambda: ops.linear_residual(x, w, torch.ones(384), residual))
    assert torch.equal(residual, kept)


@pytest.mark.parametrize(("block", "group"), [(0, 0), (64, 0), (16, 96), (50, 50), (80, 0), (1, 0)])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("m", [0, 1, 17, 197])
def test_quantize_rows(m, bits, block, group):
    width = 400 if block in (50, 80) else 384
    x = torch.randn(m, width)
    x[m // 2 :: 3] = 0  # zero rows
    kept = x.clone()
    turn = transform(width, block) if block else None
    assert_equal(lambda: ops.quantize_rows(x, turn, bits, group))
    assert_equal(lambda: ops.quantize_rows(x.bfloat16(), turn, bits, group))
    assert torch.equal(x, kept)


def test_quantize_rows_at_ties_and_vanishing_values():
    ties = torch.arange(-127.0, 128.0) / 2
    ties[0], ties[-1] = -127, 127  # scale 1: every odd half is a tie
    tiny = torch.full((255,), 1e-37)
    x = torch.stack([ties, -ties, tiny, tiny * 1e-3, torch.zeros(255)])
    assert_equal(lambda: ops.quantize_rows(x, None, 8))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    st.integers(2, 8),
)
def test_quantize_rows_of_any_floats(values, bits):
    x = torch.tensor([values, values[::-1]])
    assert_equal(lambda: ops.quantize_rows(x, None, bits))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("m", ROWS)
def test_linear_gelu_quantize(m, approximate):
    x, w, bias = rows(m, 48), weight(192, 48), torch.randn(192)
    turn = transform(192, 32)
    assert_one_step_at_most(lambda: ops.linear_gelu_quantize(x, w, bias, approximate, None, 8))
    assert_one_step_at_most(lambda: ops.linear_gelu_quantize(x, w, bias, approximate, turn, 4, 64))


# width, block and group: how many columns the compiled path finishes together, and what is left in the end
SCALED_COLUMNS = [
    (320, 64, 0), (320, 64, 64), (320, 64, 80), (320, 64, 160), (240, 16, 48), (384, 128, 64), (512, 256, 32),
]  # fmt: skip


@pytest.mark.parametrize("m", range(1, 14))
def test_every_rest_of_rows(m):
    """The compiled path takes six rows at a time, and has tiles of three and of one for what is left."""
    x, w, grouped = rows(1, m, 48), weight(144, 48), rows(m, 384, groups=3)
    assert_equal(lambda: ops.linear(x, w, None))
    assert_equal(lambda: ops.linear_qkv(x, w, None, 3, 8))
    w = weight(80, 384)
    assert_equal(lambda: ops.linear_residual(grouped, w, None, torch.ones(m, 80)))
    for width, block, group in SCALED_COLUMNS:
        w, turn = weight(width, 48), transform(width, block)
        assert_one_step_at_most(
            lambda w=w, turn=turn, group=group: ops.linear_gelu_quantize(
                x, w, None, "none", turn, 4, group
            )
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 48), (1, 48), (2, 197, 384), (1700, 260)])
def test_layernorm_quantize(shape, dtype):
    x, width = torch.randn(shape).to(dtype), shape[-1]
    scale, shift = torch.rand(width), torch.randn(width)
    turn = transform(width, width & -width)
    assert_one_step_at_most(lambda: ops.layernorm_quantize(x, scale, shift, 1e-6, None, 8))
    assert_one_step_at_most(
        lambda: ops.layernorm_quantize(x, scale, shift, 1e-6, turn, 4, width // 4)
    )


@pytest.mark.parametrize(("batch", "tokens"), [(0, 5), (1, 1), (2, 17), (8, 197), (1, 600)])
@pytest.mark.parametrize("bits", [4, 8])
def test_linear_qkv(batch, tokens, bits):
    x, w, bias = rows(batch, tokens, 48), weight(3 * 3 * 64, 48), torch.randn(576)
    assert_equal(lambda: ops.linear_qkv(x, w, bias, 3, bits))


def test_linear_qkv_with_norm_and_rotation():
    x, w = rows(2, 197, 48), weight(3 * 3 * 64, 48)
    parameters, turn = norm(64), transform(64, 64)
    assert_one_step_at_most(lambda: ops.linear_qkv(x, w, None, 3, 8, parameters, turn))


def test_linear_qkv_results_share_no_memory():
    q, k, v = ops.linear_qkv(rows(1, 1, 8), weight(24, 8), None, 1, 8)
    storages = {t.untyped_storage().data_ptr() for part in (q, k, v) for t in part}
    assert len(storages) == 6


@pytest.mark.parametrize(
    ("batch", "count", "tokens", "width"),
    [
        (0, 1, 5, 16),
        (1, 1, 1, 16),
        (2, 3, 17, 40),
        (3, 6, 197, 64),
        (2, 2, 49, 32),
        (1, 1, 1200, 24),
    ],
)
@pytest.mark.parametrize("softmax_bits", [4, 8])
def test_attention(batch, count, tokens, width, softmax_bits):
    """1200 tokens: one head fills several blocks, and the sums over keys pass 2^24."""
    q, k, v = heads(batch, count, tokens, width)
    group = count * width // 2
    # quantized twice: one numerator on the other side of a tie moves a row
    assert_one_step_at_most(lambda: ops.attention(q, k, v, 0.1, softmax_bits, 8, group), 1e-4)


def test_attention_of_extremes():
    """Equal logits and all values 127: every numerator is 127 and the sum the largest there is."""
    full = Quantized(torch.full((1, 2, 1100, 16), 127, dtype=torch.int8), torch.ones(1, 2, 1100, 1))
    assert_equal(lambda: ops.attention(full, full, full, 1e-3, 8, 8))


def test_quantize_pixels():
    images = torch.randn(3, 3, 28, 42)
    gain, offset = torch.tensor([58.0, 57.0, 57.4]), torch.tensor([-4.3, -11.7, -24.5])
    assert_equal(lambda: ops.quantize_pixels(images, gain, offset, (14, 14)))
    assert_equal(lambda: ops.quantize_pixels(images.mT.bfloat16(), gain, offset, (14, 7)))


def test_int32_sums_become_floats_in_their_own_memory():
    """torch promises nothing about a copy onto itself in another dtype: this is what we rely on."""
    sums = torch.randint(-(2**31), 2**31 - 1, (300, 1031), dtype=torch.int32)
    expected = sums.float()
    got = cpu._in_float(sums)
    assert got.data_ptr() == sums.data_ptr()
    assert torch.equal(got, expected)


def test_threads_do_not_change_the_result():
    x, w = rows(2, 197, 96), weight(384, 96)
    q, k, v = heads(2, 6, 197, 64)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with use_backend("cpu"):
                results.append(
                    tensors(ops.linear_gelu_quantize(x, w, None, "none", None, 8))
                    + tensors(ops.attention(q, k, v, 0.125, 8, 8))
                )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_reference_clamp_never_acts_on_dynamic_eight_bit_rows():
    """The cpu backend leaves the clamp out there; this is the bound that it relies on."""
    x = torch.randn(4096, 8).mul_(torch.logspace(-20, 20, 4096)[:, None])
    scale = reference.scale_of(x.abs().amax(-1, keepdim=True), reference.steps_of(8))
    assert torch.round(x / scale).abs().max() == 127


def test_intermediates_are_a_threads_own():
    """Several threads in one op at a time, each with its own operands."""
    cases = [(rows(197, 96), weight(384, 96), heads(1, 2, 100, 32)) for _ in range(8)]

    def results(case):
        x, w, (q, k, v) = case
        turn = transform(384, 32)._replace(signs=torch.ones(384))
        out = []
        for _ in range(5):
            out += tensors(ops.linear_gelu_quantize(x, w, None, "none", turn, 8))
            out += tensors(ops.attention(q, k, v, 0.1, 8, 8))
        return out

    with use_backend("cpu"):
        alone = [results(case) for case in cases]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(results, cases))
    for a, b in zip(alone, together, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_intermediates_made_in_inference_mode_serve_outside():
    x, w, turn = rows(300, 96), weight(1600, 96), transform(1600, 64)
    with torch.inference_mode():
        inside = tensors(ops.linear_gelu_quantize(x, w, None, "none", turn, 8))
    outside = tensors(ops.linear_gelu_quantize(x, w, None, "none", turn, 8))
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


def test_packed_activations_are_the_same_codes():
    """Every op that quantizes, packed and not; and a product of packed codes."""
    x, turn = torch.randn(2, 17, 192), transform(192, 64)
    w, scale, shift = weight(192, 192), torch.rand(192), torch.randn(192)
    a = rows(2, 17, 192)
    parts = heads(2, 3, 17, 64)
    for call in (
        lambda packed: ops.quantize_rows(x, turn, 4, 64, packed=packed),
        lambda packed: ops.layernorm_quantize(x, scale, shift, 1e-6, turn, 4, packed=packed),
        lambda packed: ops.linear_gelu_quantize(a, w, None, "none", turn, 3, 64, packed=packed),
        lambda packed: ops.attention(*parts, 0.125, 4, 4, 64, packed=packed),
    ):
        assert_one_step_at_most(lambda call=call: call(False))
        packed, plain = call(True), call(False)
        assert packed.codes.dtype == torch.uint8
        assert torch.equal(unpack_int4(packed.codes, 192), plain.codes)
        assert torch.equal(packed.scale, plain.scale)
        product = ops.linear(packed, w, None)
        assert torch.equal(product, ops.linear(plain, w, None))
        assert_equal(lambda packed=packed: ops.linear(packed, w, None))


def test_attention_with_bias_and_mask():
    parts = heads(4, 3, 17, 16)
    bias, mask = torch.randn(2, 3, 17, 17), torch.rand(1, 1, 17, 17) < 0.5
    mask[..., 5, :] = False
    assert_equal(lambda: ops.attention(*parts, 0.25, 8, 8, 16, bias=bias, mask=mask))


def test_default_device_and_dtype_do_not_matter():
    x, w, (scale, shift) = torch.randn(5, 64), weight(192, 64), torch.randn(2, 64).unbind()
    images, gain, offset = torch.randn(1, 3, 8, 8), torch.ones(3), torch.zeros(3)
    signs = transform(64, 16)

    def run():
        normed = ops.layernorm_quantize(x, scale, shift, 1e-6, signs, 8)
        batch = Quantized(normed.codes[None], normed.scale[None])
        q, k, v = ops.linear_qkv(batch, w, None, 2, 8)
        return (
            *ops.linear_gelu_quantize(normed, w, None, "none", None, 8),
            *ops.attention(q, k, v, 0.2, 8, 8),
            ops.linear_residual(normed, w, None, x.new_zeros(5, 192)),
            ops.quantize_pixels(images, gain, offset, (4, 4)),
        )

    with use_backend("cpu"):
        expected = run()
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with torch.device("meta"):
                got = run()
        finally:
            torch.set_default_dtype(before)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_a_static_scale_may_be_of_any_layout():
    x, scale = torch.randn(5, 64), torch.tensor([[0.02]]).expand(1, 4)
    assert scale.stride() == (1, 0)
    assert_equal(lambda: ops.quantize_rows(x, None, 8, 16, static_scale=scale))
