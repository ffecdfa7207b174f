import math

import pytest
import torch

from qvit.quant.static_activations import (
    LearnedStep,
    PowersOfTwo,
    activation_quantizer,
    observe_ranges,
)
from qvit.quant.tracking import track_ranges
from qvit.recipe import Static

KINDS = ("lsq", "ema", "minmax", "percentile", "mse")


def calibrated(quantizer, *batches):
    observe_ranges(quantizer, True)
    for batch in batches:
        quantizer(batch)
    observe_ranges(quantizer, False)
    return quantizer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", ["formula", "mse"])
def test_a_range_is_needed_and_then_there_are_sixteen_values(kind, start):
    quantizer = activation_quantizer(4, Static(activations=kind, start=start))
    x = torch.randn(2, 3, 50) + 0.5
    with pytest.raises(RuntimeError, match="calibrate the student"):
        quantizer(x)
    calibrated(quantizer, x)
    found = quantizer(x)
    assert found.shape == x.shape
    assert len(found.unique()) <= 16
    assert (found - x).abs().mean() < (0.5 if start == "formula" else 0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_range_survives_in_a_state(kind):
    quantizer = calibrated(activation_quantizer(4, Static(activations=kind)), torch.randn(100))
    other = activation_quantizer(4, Static(activations=kind))
    other.load_state_dict(quantizer.state_dict())
    x = torch.randn(50)
    assert torch.equal(other(x), quantizer(x))


def test_minmax_covers_all_batches_and_percentile_leaves_outliers_out():
    batches = [torch.randn(5000), 3 * torch.randn(5000)]
    batches[1][0] = 100.0
    ends = {}
    for kind in ("minmax", "percentile"):
        quantizer = calibrated(activation_quantizer(8, Static(activations=kind)), *batches)
        ends[kind] = float(quantizer(torch.tensor([1e4]))[0])
    assert ends["minmax"] == pytest.approx(100, rel=0.01)
    assert ends["percentile"] < 20


def test_an_average_follows_until_it_is_frozen():
    quantizer = calibrated(
        activation_quantizer(8, Static(activations="ema")), torch.linspace(-1, 1, 9)
    )
    assert float(quantizer.high / (1 - 0.9**quantizer.seen)) == pytest.approx(
        1
    )  # no bias at the start
    wide = torch.linspace(-5, 5, 9, requires_grad=True)
    quantizer(wide)
    assert quantizer.seen == 1
    track_ranges(quantizer, True)
    quantizer(wide)
    quantizer(wide.detach())  # a look without gradients moves nothing
    assert quantizer.seen == 2
    expected = (0.09 * 1 + 0.1 * 5) / (1 - 0.81)
    assert float(quantizer.high / (1 - 0.9**quantizer.seen)) == pytest.approx(expected, rel=1e-5)
    track_ranges(quantizer, False)
    quantizer(wide)
    assert quantizer.seen == 2


def test_learned_steps_start_by_the_published_formula():
    x = torch.randn(1000)
    quantizer = calibrated(LearnedStep(4), x)
    scale = 2 * x.abs().mean() / math.sqrt(7)
    assert quantizer.scale.item() == pytest.approx(float(scale), rel=1e-5)
    expected = 0.1 * (x.min() - scale * 7)
    assert quantizer.zero_point.item() == pytest.approx(float(expected), rel=1e-5)
    shares = torch.rand(1000)
    unsigned = calibrated(LearnedStep(4), shares)
    scale = 2 * shares.mean() / math.sqrt(15)
    assert unsigned.scale.item() == pytest.approx(float(scale), rel=1e-5)
    assert not unsigned.signed


def obvious_lsq(x, scale, zero_point, low, high):
    """x_hat = (round(clamp(x / a + z, low, high)) - z) a."""
    z = round(zero_point.item())
    return (torch.round(torch.clamp(x / scale + z, low, high)) - z) * scale


def test_learned_steps_answer_the_published_formula():
    x = 2 * torch.randn(500)
    quantizer = calibrated(LearnedStep(3), x)
    expected = obvious_lsq(x, quantizer.scale, quantizer.zero_point, -4, 3)
    assert torch.allclose(quantizer(x), expected.detach(), atol=1e-5)


def test_gradients_of_learned_steps_are_lsqs():
    """Of the step: round(v) - v within the range and its end beyond, times 1 / sqrt(values * high)."""
    x = torch.linspace(-3, 9, 101)
    quantizer = LearnedStep(3, "mse")
    calibrated(quantizer, x)
    with torch.no_grad():
        quantizer.scale.fill_(0.5)
        quantizer.zero_point.fill_(2.0)
    weights = torch.randn(101)
    (quantizer(x) * weights).sum().backward()
    v = x / 0.5 + 2
    inside = (v >= 0) & (v <= 7)
    ends = torch.where(v < 0, -2.0, 5.0)
    step = torch.where(inside, v.round() - v, ends)
    factor = 1 / math.sqrt(101 * 7)
    assert float(quantizer.scale.grad) == pytest.approx(
        float((step * weights).sum()) * factor, rel=1e-4
    )
    zero = torch.where(inside, 0.0, -0.5)
    assert float(quantizer.zero_point.grad) == pytest.approx(
        float((zero * weights).sum()) * factor, rel=1e-4
    )


@pytest.mark.parametrize("slowed", [1.0, 0.01])
def test_the_factor_of_a_signed_grid_is_that_of_its_largest_code(slowed):
    x = torch.randn(64).sign() * (1 + torch.rand(64))
    settings = Static(step_gradient=slowed)
    quantizer = calibrated(activation_quantizer(4, settings), x)
    with torch.no_grad():
        quantizer.scale.fill_(0.01)  # all values lie beyond the range
        quantizer.zero_point.fill_(0.0)
    quantizer(x).abs().sum().backward()
    ends = float(torch.where(x > 0, 7.0, 8.0).sum())
    assert float(quantizer.scale.grad) == pytest.approx(slowed * ends / math.sqrt(64 * 7), rel=1e-4)


def test_softmax_outputs_fall_into_the_trap_only_where_that_is_wanted():
    shares = torch.softmax(3 * torch.randn(4, 50), -1)
    fine, trapped = (calibrated(LearnedStep(4, traps=t), shares) for t in (False, True))
    assert not fine.signed
    assert trapped.signed
    assert len(fine(shares).unique()) > len(trapped(shares).unique())


def test_a_step_below_zero_is_held_and_finds_back():
    x = torch.rand(50)
    quantizer = calibrated(LearnedStep(4), x)
    with torch.no_grad():
        quantizer.scale.fill_(-1.0)
    assert quantizer(x).isfinite().all()
    (quantizer(x) - x).square().sum().backward()
    assert quantizer.scale.grad is not None
    assert quantizer.scale.grad < 0  # descent makes it larger


@pytest.mark.parametrize(("traps", "most"), [(True, 1.0), (False, 7e-5)])
def test_a_step_below_zero_stays_there_in_the_trap_alone(traps, most):
    x = torch.linspace(0, 1, 50)
    quantizer = calibrated(LearnedStep(4, traps=traps), x)
    with torch.no_grad():
        quantizer.scale.fill_(-1.0)  # held: 1e-5
        quantizer.zero_point.fill_(8.0)
    assert quantizer(x).abs().max().item() == pytest.approx(most, rel=1e-2)


def test_powers_of_two():
    x = torch.tensor([1.0, 0.9, 0.6, 0.3, 0.13, 2.0**-15, 2.0**-16, 0.0], requires_grad=True)
    found = PowersOfTwo(4)(x)
    assert found.tolist() == [1.0, 1.0, 0.5, 0.25, 0.125, 2.0**-15, 0.0, 0.0]
    found.sum().backward()
    assert torch.equal(x.grad, torch.ones(8))
    assert isinstance(activation_quantizer(4, Static(), "log2"), PowersOfTwo)


@pytest.mark.parametrize("kind", KINDS)
def test_values_with_an_extreme_code_have_a_gradient(kind):
    """Of two bits, half of the codes are extreme."""
    x = torch.linspace(0.05, 2.9, 40, requires_grad=True)
    quantizer = calibrated(
        activation_quantizer(2, Static(activations=kind, start="mse")), x.detach()
    )
    with torch.no_grad():
        if kind == "lsq":
            quantizer.scale.fill_(1.0)
            quantizer.zero_point.fill_(0.0)
        else:
            quantizer.low.fill_(0.0)
            quantizer.high.fill_(3.0 * (0.1 if kind == "ema" else 1.0))
    codes = quantizer(x)
    assert set(codes.detach().round().tolist()) == {0.0, 1.0, 2.0, 3.0}
    codes.sum().backward()
    assert torch.equal(x.grad, torch.ones(40))
