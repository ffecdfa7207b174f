import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvit.quant.ranges import group_steps, steps_that_reach, weight_grid
from qvit.quant.schemes import Granularity, Mode, Scheme
from qvit_kernels import reference


def scheme(bits, group=0, **slices):
    """Of a weight."""
    granularity = Granularity.GROUP if group else Granularity.CHANNEL
    return Scheme(bits=bits, granularity=granularity, mode=Mode.STATIC, group=group, **slices)


def squared_error(weight, scale, bits):
    """The obvious way, a row and a group at a time."""
    low, high = reference.code_range(bits)
    total = 0.0
    size = weight.shape[1] // scale.shape[1]
    for row, steps in zip(weight, scale, strict=True):
        for values, step in zip(row.split(size), steps, strict=True):
            codes = torch.round(values / step).clamp(low, high)
            total += float((codes * step - values).square().sum())
    return total


@given(bits=st.integers(2, 8), group=st.sampled_from([0, 8, 16]), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_mse_range_is_no_worse_than_minmax(bits, group, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 32, generator=generator) ** 3
    errors = [
        squared_error(weight, group_steps(weight, bits, group, method), bits)
        for method in ("mse", "minmax")
    ]
    assert errors[0] <= errors[1] * (1 + 1e-6)


def test_mse_range_clips_an_outlier():
    weight = torch.cat([torch.randn(1, 1023), torch.tensor([[12.0]])], 1)
    assert group_steps(weight, 3).abs() < 0.5 * group_steps(weight, 3, method="minmax").abs()


@pytest.mark.parametrize("group", [0, 4])
def test_zero_rows_are_harmless(group):
    scale = group_steps(torch.zeros(3, 8), 4, group)
    assert torch.isfinite(scale).all()
    assert (scale != 0).all()


def test_step_points_the_extra_code_at_the_longer_tail():
    weight = torch.tensor([[-8.0, 7, 3, -2, 1], [8.0, -7, -3, 2, -1]])
    scale = group_steps(weight, 4).squeeze(1)
    assert scale[0] > 0 > scale[1]
    assert squared_error(weight, scale.unsqueeze(1), 4) < 0.01


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_search_follows_heavy_tails(bits):
    weight = torch.distributions.StudentT(3.0).sample((64, 3072))
    found = squared_error(weight, group_steps(weight, bits), bits)
    largest = group_steps(weight, bits, method="minmax")
    everywhere = [
        squared_error(weight, largest * f, bits) for f in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
    ]
    assert found <= min(everywhere)


@pytest.mark.parametrize("method", ["mse", "minmax"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_groups_have_integer_multiples_of_one_scale(bits, method):
    weight = torch.randn(70, 64) * torch.rand(70, 4).repeat_interleave(16, 1)
    weight[3], weight[5, :16] = 0.0, 0.0
    scale, multiplier = weight_grid(weight, scheme(bits, 16), method)
    assert scale.shape == (70,)
    assert (scale > 0).all()
    assert multiplier is not None
    assert multiplier.shape == (70, 4)
    assert torch.equal(multiplier, multiplier.round())
    assert multiplier.abs().min() >= 1
    low, _ = reference.code_range(bits)
    assert (multiplier.abs() * -low).max() <= 127
    # an integer of 4 bits or more is a good enough step: it costs less than going without groups by far
    found = squared_error(weight, scale.unsqueeze(-1) * multiplier, bits)
    free = squared_error(weight, group_steps(weight, bits, 16, method), bits)
    rows = squared_error(weight, group_steps(weight, bits, 0, method), bits)
    assert found < 0.4 * free + 0.6 * rows


def test_minmax_reaches_the_largest_weight_of_every_group():
    weight = torch.randn(8, 64) * torch.rand(8, 4).repeat_interleave(16, 1)
    scale, multiplier = weight_grid(weight, scheme(4, 16), "minmax")
    assert multiplier is not None
    reach = steps_that_reach(4) * scale.unsqueeze(-1) * multiplier
    assert (weight.unflatten(-1, (4, 16)).abs().amax(-1) <= reach * (1 + 1e-5)).all()
