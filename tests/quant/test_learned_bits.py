"""Widths as parameters: the values are the reference's, and gradients those of the derivation, by other means."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qvit.quant import learned_bits
from qvit.quant.schemes import Granularity, Scheme
from qvit_kernels import reference

STEP = 1e-5


def parameter(bits) -> torch.Tensor:
    return torch.tensor(float(bits), requires_grad=True)


@pytest.mark.parametrize("bits", range(2, 9))
def test_bounds_are_those_of_the_codes(bits):
    low, high = learned_bits.code_bounds(parameter(bits))
    assert (float(low.detach()), float(high.detach())) == reference.code_range(bits)


@given(st.integers(2, 8), st.integers(0, 2**16))
def test_codes_of_a_weight_are_those_of_the_reference(bits, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 8, generator=generator)
    steps = torch.rand(3, 2, generator=generator) * 0.3 + 0.01
    steps[0] *= -1
    expected = reference.quantize(
        weight.unflatten(-1, (2, -1)), steps.unsqueeze(-1), *reference.code_range(bits)
    )
    found = learned_bits.weight_codes(weight, steps, parameter(bits).unsqueeze(0))
    assert torch.equal(found, expected.flatten(-2))


def test_clipped_weights_tell_their_width_and_no_others_do():
    """Three bits have codes -4 to 3; a bit more moves either end by 4 ln 2, in steps."""
    weight = torch.tensor([[5.0, -7.0, 0.3, 2.4], [0.1, 0.2, -0.3, 0.4]], requires_grad=True)
    steps = torch.tensor([[1.0], [0.5]])
    gradient = torch.tensor([[2.0, 5.0, 100.0, 100.0], [100.0] * 4])
    bits = parameter(3)
    codes = learned_bits.weight_codes(weight, steps, bits.unsqueeze(0))
    (codes * steps * gradient).sum().backward()
    assert float(bits.grad) == pytest.approx((2.0 - 5.0) * 4 * math.log(2))
    assert weight.grad.tolist() == [[0.0, 0.0, 100.0, 100.0], [100.0] * 4]


def test_slices_have_widths_of_their_own():
    """Of rows; and of columns, of which a group may be a part, or have parts of two."""
    weight = torch.full((2, 12), 9.0)
    bits = torch.tensor([3.0, 4.0], requires_grad=True)
    found = learned_bits.weight_codes(weight, torch.ones(2, 3), bits)
    assert found.tolist() == [[3.0] * 12, [7.0] * 12]
    found.sum().backward()
    assert bits.grad.tolist() == pytest.approx([12 * 4 * math.log(2), 12 * 8 * math.log(2)])
    for groups in (1, 3, 4):
        bits = torch.tensor([2.0, 5.0], requires_grad=True)
        found = learned_bits.weight_codes(weight, torch.ones(2, groups), bits, rows=False)
        assert found.tolist() == [[1.0] * 6 + [9.0] * 6] * 2
        found.sum().backward()
        assert bits.grad.tolist() == pytest.approx([12 * 2 * math.log(2), 0.0])
    steps = torch.tensor([[1.0, 3.0, 4.5]]).expand(2, 3)
    found = learned_bits.weight_codes(weight, steps, torch.tensor([3.0, 8.0]), rows=False)
    assert found.tolist() == [[3.0] * 6 + [3.0] * 2 + [2.0] * 4] * 2


def surrogate(x, bits, width, group, positive):
    """v_hat of a real-valued width, in fp64: rounding errors stay as they are at a whole width, the rest moves."""
    x = x.double().unflatten(-1, (-1, group))
    high = x.amax(-1, keepdim=True)
    largest = x.abs().amax(-1, keepdim=True)
    sign = torch.ones_like(high) if positive or width == 8 else 1 - 2.0 * (high == largest)

    def parts(n):
        half = torch.tensor(2.0 ** (n - 1), dtype=torch.float64)
        steps = half + 0.25 if width < 8 else half - 1
        return sign * largest / steps, half

    scale, half = parts(width)
    exact = x / scale
    low, top = (-half if width < 8 else 1 - half), half - 1
    error = exact.round() - exact
    scale, half = parts(bits)
    bound = torch.where(exact < 0, -half if width < 8 else 1 - half, half - 1)
    clipped = (exact < low * (1 + 1e-6)) | (exact > top * (1 + 1e-6))
    return (scale * torch.where(clipped, bound, x / scale + error)).flatten(-2)


@pytest.mark.parametrize("group", [0, 8])
@pytest.mark.parametrize("width", range(2, 9))
def test_the_gradient_of_an_input_is_that_of_its_step(width, group):
    torch.manual_seed(width)
    x, gradient = torch.randn(5, 7, 24, requires_grad=True), torch.randn(5, 7, 24)
    kind = Granularity.GROUP if group else Granularity.TOKEN
    scheme = Scheme(bits=width, granularity=kind, group=group)
    bits = parameter(width)
    found = learned_bits.quantize_input(x, bits, scheme)
    assert torch.equal(found, reference.quantize_rows(x.detach(), width, group).values())
    (found * gradient).sum().backward()
    assert torch.equal(x.grad, gradient)
    ends = [
        float((surrogate(x.detach(), width + d, width, group or 24, False) * gradient).sum())
        for d in (STEP, -STEP)
    ]
    assert float(bits.grad) == pytest.approx((ends[0] - ends[1]) / (2 * STEP), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("width", [2, 4, 7])
def test_the_gradient_of_heads_is_that_of_their_step(width):
    torch.manual_seed(width)
    x, gradient = torch.randn(2, 3, 5, 16, requires_grad=True), torch.randn(2, 3, 5, 16)
    bits = parameter(width)
    values, scale = learned_bits.quantize_heads(x, bits)
    assert torch.equal(values, reference.quantize_heads(x.detach(), width).values())
    assert not scale.requires_grad
    (values * gradient).sum().backward()
    ends = [
        float((surrogate(x.detach(), width + d, width, 16, True) * gradient).sum())
        for d in (STEP, -STEP)
    ]
    assert float(bits.grad) == pytest.approx((ends[0] - ends[1]) / (2 * STEP), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("width", [2, 4, 7, 8])
def test_the_gradient_of_softmax_numerators_is_that_of_their_step(width):
    """By hand: with step s = top / (2^n - 1), rounding errors as they are, v_hat moves by ds/dn times them."""
    shares = torch.tensor([[0.1, 0.55, 0.35]])
    top, most = 0.55, min(2**width - 1, 127)
    step = top / most
    codes = (shares / step).round()
    bits = parameter(width)
    found = learned_bits.quantize_shares(shares, codes * step, bits)
    assert torch.equal(found, codes * step)
    gradient = torch.tensor([[1.0, 2.0, 3.0]])
    (found * gradient).sum().backward()
    rise = 2**width * math.log(2) if width < 8 else 0.0
    expected = -step * rise / most * ((codes - shares / step) * gradient).sum()
    assert float(bits.grad) == pytest.approx(float(expected), rel=1e-4, abs=1e-7)


def test_tokens_of_a_prefix_say_nothing_of_the_width():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16, requires_grad=True)
    scheme = Scheme(bits=3, granularity=Granularity.TOKEN, prefix=2)
    found = []
    for rows in (slice(0, 2), slice(2, 5)):
        bits = parameter(3)
        learned_bits.quantize_input(x, bits, scheme)[:, rows].square().sum().backward()
        found.append(float(bits.grad))
    assert found[0] == 0
    assert found[1] != 0
