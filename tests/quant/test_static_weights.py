import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvit.quant.static_weights import WeightQuantizer


@given(bits=st.integers(2, 8), shape=st.sampled_from([(3, 10), (4, 2, 3, 3)]))
@settings(deadline=None, max_examples=30)
def test_minmax_is_the_published_formula(bits, shape):
    weight = torch.randn(shape)
    found = WeightQuantizer(bits)(weight)
    for row, expected in zip(weight, found, strict=True):
        scale = (2**bits - 1 + 1 / 128) / (2 * row.abs().max())  # the published one has no 1 / 128
        codes = torch.clamp(torch.round(scale * row), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        assert torch.allclose(expected, codes / scale, atol=1e-5)


@pytest.mark.parametrize("range", ["minmax", "mse"])
@pytest.mark.parametrize("shape", [(6, 40), (6, 4, 3, 3)])
def test_codes_of_a_stack_are_those_of_each_candidate(range, shape):
    quantizer = WeightQuantizer(4, range, channels=6)
    candidates = torch.randn(5, *shape)
    quantizer.fit(candidates[0])
    codes = quantizer.codes(candidates)
    assert codes.shape == candidates.shape
    assert codes.min() >= -8
    assert codes.max() <= 7
    for weight, own in zip(candidates, codes, strict=True):
        for row, theirs in zip(quantizer(weight), own, strict=True):
            steps = (row / theirs)[theirs != 0]
            assert (steps - steps[0]).abs().max() < 1e-5  # one step a channel
        assert torch.equal(quantizer.codes(weight[None])[0], own)


def test_mse_is_nearer_than_minmax_and_does_not_follow():
    weight = torch.randn(8, 200)
    ranges = {r: WeightQuantizer(4, r, channels=8) for r in ("minmax", "mse")}
    for quantizer in ranges.values():
        quantizer.fit(weight)
    error = {r: float((q(weight) - weight).square().mean()) for r, q in ranges.items()}
    assert error["mse"] < error["minmax"]
    assert (ranges["mse"](100 * weight).abs().amax(1) < 2 * weight.abs().amax(1)).all()
    assert torch.allclose(ranges["minmax"](100 * weight), 100 * ranges["minmax"](weight), rtol=1e-4)


def test_gradients_pass_straight_through():
    weight = torch.randn(3, 20, requires_grad=True)
    WeightQuantizer(3)(weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones(3, 20))
    quantizer = WeightQuantizer(3, "mse", channels=3)
    quantizer.fit(weight)
    far = (10 * weight.detach()).requires_grad_()
    quantizer(far).sum().backward()
    assert 0 < float((far.grad == 0).float().mean()) < 1  # beyond the range there is none


def test_a_last_bit_changes_no_integer():
    """The largest weight of a row lies on no tie, whatever it is."""
    weight = torch.randn(500, 20)
    quantizer = WeightQuantizer(4)
    scaled = torch.stack([weight * (1 + i * 2**-23) for i in range(8)])
    codes = quantizer.codes(scaled)
    assert (codes != codes[0]).float().mean() < 1e-5


def test_a_channel_of_zeros_stays_zero():
    weight = torch.zeros(2, 5)
    assert torch.equal(WeightQuantizer(4)(weight), weight)


def test_unknown_ranges_are_refused():
    with pytest.raises(ValueError, match="expected minmax or mse"):
        WeightQuantizer(4, "maximum")
