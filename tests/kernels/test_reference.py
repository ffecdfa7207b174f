"""The definition against slow, obvious versions of itself."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qvit_kernels import reference
from qvit_kernels.reference import TINY, BlockTransform, Quantized, Weight
from tests.kernels.operands import codes, heads, transform


def test_ties_go_to_even():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]) * 0.25
    got = reference.quantize(x, torch.tensor(0.25), -127, 127)
    assert got.tolist() == [0, 2, 2, 0, -2, -2, 126]


def test_static_grid_saturates():
    x = torch.tensor([-1e30, -3.0, 3.0, math.inf, -math.inf])
    assert reference.quantize(x, torch.tensor(0.1), -7, 7).tolist() == [-7, -7, 7, 7, -7]


@pytest.mark.parametrize("row", [[0.0, -0.0, 0.0], [1e-38, -1e-38, 0.0]])
def test_zero_and_vanishing_rows(row):
    got = reference.quantize_rows(torch.tensor([row]), 8)
    assert got.scale.item() == TINY
    assert got.codes.abs().max() == 0


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=12),
    st.sampled_from([2, 4, 8]),
)
def test_dynamic_rows_follow_the_formula(row, bits):
    x = np.array(row, dtype=np.float32)
    low, high = {2: (-2, 1), 4: (-8, 7), 8: (-127, 127)}[bits]
    steps = {2: 2.25, 4: 8.25, 8: 127}[bits]
    scale = max(np.abs(x).max() / np.float32(steps), np.float32(TINY))
    if bits < 8 and x.max() > -x.min():
        scale = -scale
    expected = np.clip(np.rint(x * (np.float32(1) / scale)), low, high)
    got = reference.quantize_rows(torch.from_numpy(x)[None], bits)
    assert got.scale.item() == scale
    assert got.codes[0].tolist() == expected.tolist()
    if abs(scale) > TINY:
        # nothing is further than half a step from its code, or above all codes; the extreme has the lowest one
        codes = x / scale
        assert np.where(codes > high, 0, np.abs(codes - expected)).max() <= 0.505
        assert (codes - expected).max() <= (0.505 if bits == 8 else 1.255)
        assert np.abs(expected).max() == high if bits == 8 else expected.min() == low


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=12),
    st.sampled_from([2, 3, 4, 6, 8]),
)
def test_a_row_turned_round_has_the_same_codes(row, bits):
    """Below 8 bits it is the scale that turns; both ends of a grid of 8 bits are alike."""
    x = torch.tensor([row])
    if x.max() == -x.min():
        return  # either end would do, and the lower one is taken
    there, back = reference.quantize_rows(x, bits), reference.quantize_rows(-x, bits)
    sign = -1 if bits == 8 else 1
    assert torch.equal(there.codes, sign * back.codes)
    if there.scale.abs() > TINY:
        assert torch.equal(there.scale, -sign * back.scale)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_heads_have_positive_scales(bits):
    """V's join the numerators of a softmax, whose codes have no sign."""
    x = torch.randn(2, 3, 5, 8)
    got = reference.quantize_heads(x, bits)
    assert (got.scale > 0).all()
    assert torch.equal(got.scale, reference.quantize_rows(x, bits).scale.abs())


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_one_ulp_does_not_decide_the_code_of_a_rows_extreme(bits):
    """Every row has an extreme: at half a step between two codes, backends would differ in each second row."""
    x = torch.randn(4096, 8)
    codes = reference.quantize_rows(x, bits).codes
    for away in (torch.inf, 0.0):
        nudged = reference.quantize_rows(torch.nextafter(x, away * x.sign()), bits).codes
        assert (nudged != codes).float().mean() < 1e-4


def test_groups_are_rows_of_their_own():
    x = torch.randn(3, 4, 24)
    got = reference.quantize_rows(x, 4, 8)
    apart = reference.quantize_rows(x.view(3, 4, 3, 8), 4)
    assert torch.equal(got.scale, apart.scale.squeeze(-1))
    assert torch.equal(got.codes.view(3, 4, 3, 8), apart.codes)


@pytest.mark.parametrize("k", [1, 77, 1039, 1041, 1600, 3072])
def test_integer_product_is_exact_for_extremes(k):
    """All 127 passes 2^24 beyond K = 1040; an odd sum there has no fp32, so it rounds once."""
    for low, high in ((127, 127), (-127, 127)):
        a, b = torch.full((2, k), float(low)), torch.full((3, k), float(high))
        b[0, 0] = high - 1
        expected = (a.to(torch.int64) @ b.to(torch.int64).t()).float()
        assert torch.equal(reference.integer_matmul(a, b), expected)


def test_bound_decides_where_fp64_begins():
    """-128 is a legal pixel code: at K = 1040 only its own bound keeps the sum exact."""
    a, b = torch.full((1, 1040), -128.0), torch.full((1, 1040), 127.0)
    b[0, 1000:] = 126.0
    b[0, 1039] = 125.0
    expected = (a.double() @ b.double().t()).float()
    assert torch.equal(reference.integer_matmul(a, b, 128 * 128), expected)


def slow_linear(x: Quantized, w: Weight, bias: Tensor | None) -> np.ndarray:
    """Loops over numpy scalars, one fp32 rounding an operation."""
    (m, k), n = x.codes.shape, w.codes.shape[0]
    a, b = x.codes.numpy().astype(np.int64), w.codes.numpy().astype(np.int64)
    levels = np.ones((n, 1), np.int64)
    if w.multiplier is not None:
        levels = w.multiplier.numpy().astype(np.int64)
    sx, sw = x.scale.expand(m, -1).numpy(), w.scale.numpy()
    y = np.zeros((m, n), dtype=np.float32)
    for i in range(m):
        for j in range(n):
            total = None
            for g in range(sx.shape[1]):
                acc = 0
                for c in range(g * k // sx.shape[1], (g + 1) * k // sx.shape[1]):
                    acc += a[i, c] * b[j, c] * levels[j, c * levels.shape[1] // k]
                part = np.float32(acc) * sx[i, g]
                total = part if total is None else total + part
            assert total is not None
            total = total * sw[j]
            y[i, j] = total if bias is None else total + bias[j].numpy()
    return y


@pytest.mark.parametrize(("gx", "gw"), [(1, 0), (4, 0), (1, 4), (4, 2), (2, 4), (3, 2)])
@pytest.mark.parametrize("biased", [True, False])
def test_linear_is_the_formula(gx, gw, biased):
    x = Quantized(codes(5, 24).float(), torch.rand(5, gx))
    multiplier = codes(7, gw, bits=4).float() if gw else None
    w = Weight(codes(7, 24, bits=4).float(), torch.rand(7), multiplier)
    bias = torch.randn(7) if biased else None
    assert np.array_equal(reference.linear(x, w, bias).numpy(), slow_linear(x, w, bias))


def test_linear_static_scale_is_every_rows_scale():
    x, w = codes(2, 3, 24).float(), Weight(codes(7, 24).float(), torch.rand(7))
    static = torch.rand(1, 4)
    got = reference.linear(Quantized(x, static), w)
    assert torch.equal(got, reference.linear(Quantized(x, static.expand(2, 3, 4)), w))


def matrix_of(block: int) -> Tensor:
    """The block's orthogonal matrix, from its definition, in fp64."""
    odd, power = block, 1
    while odd % 2 == 0:
        odd, power = odd // 2, power * 2
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while hadamard.shape[0] < power:
        hadamard = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double(), hadamard)
    dct = torch.tensor(
        [
            [
                math.sqrt((1 if i == 0 else 2) / odd) * math.cos(math.pi * i * (j + 0.5) / odd)
                for j in range(odd)
            ]
            for i in range(odd)
        ],
        dtype=torch.float64,
    )
    return torch.kron(hadamard / math.sqrt(power), dct)


@pytest.mark.parametrize("block", [1, 2, 3, 16, 32, 50, 64, 80, 128])
def test_block_transform_is_its_matrix_and_orthogonal(block):
    width = 2 * block
    t = transform(width, block)
    eye = torch.eye(width)
    got = reference.block_transform(eye, t).double()  # row i: image of unit vector i
    blocks = torch.block_diag(matrix_of(block), matrix_of(block))
    assert torch.allclose(got.t(), blocks * t.signs.double(), atol=3e-7)
    assert torch.allclose(got @ got.t(), eye.double(), atol=2e-6)


def test_block_transform_undoes_itself_in_the_product():
    x, w, t = torch.randn(5, 96), torch.randn(7, 96), transform(96, 32)
    turned = reference.block_transform(x, t) @ reference.block_transform(w, t).t()
    assert torch.allclose(turned, x @ w.t(), atol=1e-4)


def test_no_transform_is_no_operation():
    x = torch.randn(2, 8)
    assert reference.block_transform(x, None) is x


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("softmax_bits", [4, 8])
def test_attention_is_the_formula(softmax_bits, masked):
    b, h, t, d = 4, 3, 9, 16
    q, k, v = (Quantized(part.codes.float(), part.scale) for part in heads(b, h, t, d))
    bias = torch.randn(2, h, t, t) if masked else torch.zeros(1, 1, t, t)
    seen = torch.rand(4, 1, t, t) < 0.7 if masked else torch.ones(1, 1, t, t, dtype=torch.bool)
    seen[..., 0] = True
    if masked:
        seen[0, 0, 3] = False  # a row that sees nothing
    options = {"bias": bias, "mask": seen} if masked else {}
    got = reference.attention(q, k, v, softmax_scale=0.25, softmax_bits=softmax_bits, **options)
    qmax = min(2**softmax_bits - 1, 127)
    expected = torch.empty(b, t, h, d, dtype=torch.float64)
    for image in range(b):
        for head in range(h):
            at = (image, head)
            logits = (q.codes[at] * q.scale[at]).double() @ (k.codes[at] * k.scale[at]).double().t()
            logits = 0.25 * logits + bias[image % len(bias), head % bias.shape[1]]
            for i in range(t):
                visible = seen[image % len(seen), 0, i]
                e = torch.ones(t, dtype=torch.float64)
                if visible.any():
                    e = torch.exp(logits[i] - logits[i][visible].max()) * visible
                p = e * v.scale[at][:, 0].double()
                step = p.max() / qmax
                p = torch.round(p / step)
                assert p.max() == qmax
                expected[image, i, head] = (p @ v.codes[at].double()) * step / e.sum()
    assert torch.allclose(got.double(), expected.flatten(-2), rtol=1e-4, atol=1e-5)


def test_attention_ignores_a_zero_value_row():
    """A zero V row has scale TINY, so it cannot coarsen the grid of the numerators."""
    q, k, v = (Quantized(p.codes.float(), p.scale) for p in heads(1, 1, 6, 16))
    v.codes[..., 2, :] = 0
    v.scale[..., 2, :] = TINY
    got = reference.attention(q, k, v, softmax_scale=1e-6, softmax_bits=8)
    mean = (v.codes * v.scale)[0, 0].sum(0) / 6  # equal logits: the plain mean
    assert torch.allclose(got[0, 0], mean, atol=0.02 * float(mean.abs().max()) + 1e-3)


def test_eight_bit_pixels_lose_nothing():
    pixels = torch.arange(256.0).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = (pixels / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    got = reference.quantize_pixels(images, 255 * std, 255 * mean - 128)
    assert torch.equal(got, pixels - 128)


def test_pixels_saturate():
    images = torch.tensor([1e9, -1e9]).view(1, 1, 1, 2)
    got = reference.quantize_pixels(images, torch.ones(1), torch.zeros(1))
    assert got.flatten().tolist() == [127, -128]


def test_patches_are_in_the_order_of_a_convolution():
    images, kernel = torch.randn(2, 3, 8, 12), torch.randn(5, 3, 4, 6)
    convolved = torch.nn.functional.conv2d(images, kernel, stride=(4, 6)).flatten(2).mT
    unfolded = reference.unfold_patches(images, (4, 6)) @ kernel.flatten(1).t()
    assert torch.allclose(unfolded, convolved, atol=1e-4)


def test_gradient_passes_straight_through_rounding_and_stops_at_saturation():
    x = torch.tensor([0.3, 0.74, 10.0], requires_grad=True)
    step = torch.tensor(0.25)
    (reference.quantize(x, step, -7, 7) * step).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0, 0.0]


def test_gradient_reaches_scale_and_input_of_dynamic_rows():
    x = torch.randn(3, 8, requires_grad=True)
    got = reference.quantize_rows(x, 4)
    (got.codes * got.scale).square().sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0).any(-1).all())


def test_split_heads_separates_q_k_and_v():
    y = torch.arange(2 * 3 * 24.0).view(2, 3, 24)
    q, k, v = reference.split_heads(y, 2)
    assert torch.equal(q[1, 1, 2], y[1, 2, 4:8])
    assert torch.equal(k[0, 0, 1], y[0, 1, 8:12])
    assert torch.equal(v[0, 1, 0], y[0, 0, 20:24])


def test_signs_come_before_the_blocks():
    t = BlockTransform(torch.tensor([-1.0, 1.0]), 2)
    got = reference.block_transform(torch.tensor([[1.0, 0.0]]), t)
    assert torch.allclose(got, torch.tensor([[-1.0, -1.0]]) / math.sqrt(2))


def test_values_with_an_extreme_code_have_a_gradient():
    """A softmax numerator whose code is 0 is one of most, and learns like the others."""
    x = torch.linspace(0.05, 2.9, 40, requires_grad=True)
    codes = reference.quantize(x, torch.ones(()), 0, 3)
    assert set(codes.tolist()) == {0.0, 1.0, 2.0, 3.0}
    codes.sum().backward()
    assert torch.equal(x.grad, torch.ones(40))
