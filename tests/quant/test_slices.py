"""Slices of a weight with bits of their own: each is quantized by its own codes, and all are computed with as int8."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvit.quant.ranges import group_steps, weight_grid
from qvit.quant.schemes import Granularity, Mode, Scheme
from qvit.quant.slices import code_limits, join_slices, multiplier_limits, split_slices
from qvit_kernels.reference import Weight, code_range, largest_multiplier, quantize

MIXED = st.lists(st.integers(2, 8), min_size=2, max_size=5).filter(lambda bits: len(set(bits)) > 1)


def sliced(axis, bits, group=0):
    granularity = Granularity.GROUP if group else Granularity.CHANNEL
    return Scheme(
        bits=max(bits), granularity=granularity, mode=Mode.STATIC, group=group, **{axis: bits}
    )


def alone(bits, group):
    group = group if bits <= 4 else 0
    granularity = Granularity.GROUP if group else Granularity.CHANNEL
    return Scheme(bits=bits, granularity=granularity, mode=Mode.STATIC, group=group)


def weights(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(rows, columns // 8, generator=generator).repeat_interleave(8, 1)
    return torch.randn(rows, columns, generator=generator) * sizes


@pytest.mark.parametrize("axis", ["rows", "columns"])
@given(bits=MIXED, seed=st.integers(0, 99))
@settings(deadline=None, max_examples=15)
def test_slices_are_equal_parts_that_come_together_again(axis, bits, seed):
    scheme = sliced(axis, tuple(bits), 8)
    count = len(bits)
    weight = weights(
        4 * count if axis == "rows" else 3, 8 * count if axis == "columns" else 16, seed
    )
    parts = split_slices(weight, scheme)
    assert len(parts) == count
    assert len({part.shape for part in parts}) == 1
    assert torch.equal(join_slices(parts, scheme), weight)
    groups = weight.unflatten(1, (-1, 8))
    low, high = (
        torch.as_tensor(limit).expand(groups.shape).flatten(1)
        for limit in code_limits(scheme, groups[..., 0])
    )
    for width, lows, highs in zip(
        bits, split_slices(low, scheme), split_slices(high, scheme), strict=True
    ):
        assert (set(lows.unique().tolist()), set(highs.unique().tolist())) == tuple(
            {float(code)} for code in code_range(width)
        )


@given(bits=MIXED, group=st.sampled_from([0, 8, 16]), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=15)
def test_rows_have_the_grid_of_their_slice_alone(bits, group, seed):
    weight = weights(3 * len(bits), 16, seed)
    found = weight_grid(weight, sliced("rows", tuple(bits), group if min(bits) <= 4 else 0))
    for i, (part, width) in enumerate(zip(weight.chunk(len(bits)), bits, strict=True)):
        expected = weight_grid(part, alone(width, group))
        rows = slice(3 * i, 3 * i + 3)
        assert torch.equal(found.scale[rows], expected.scale)
        if expected.multiplier is not None:
            assert found.multiplier is not None
            assert torch.equal(found.multiplier[rows], expected.multiplier)
        elif found.multiplier is not None:
            assert (found.multiplier[rows] == 1).all()


@pytest.mark.parametrize("method", ["mse", "minmax"])
@given(bits=MIXED, group=st.sampled_from([8, 16]), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=15)
def test_columns_share_the_scales_of_rows_and_products_fit_8_bits(method, bits, group, seed):
    weight = weights(5, 16 * len(bits), seed)
    scheme = sliced("columns", tuple(bits), group)
    scale, multiplier = weight_grid(weight, scheme, method)
    assert multiplier is not None
    assert scale.shape == (5,)
    assert (scale > 0).all()
    for part, width in zip(split_slices(multiplier, scheme), bits, strict=True):
        assert torch.equal(part, part.round())
        assert 1 <= part.abs().min() <= part.abs().max() <= largest_multiplier(width)
    steps = scale.unsqueeze(-1) * multiplier
    low, high = code_limits(scheme, steps)
    codes = quantize(weight.unflatten(1, (-1, group)), steps.unsqueeze(-1), low, high).flatten(1)
    assert Weight(codes, scale, multiplier).integers().abs().max() <= 127


def squared_error(weight, scheme, steps):
    grouped = weight.unflatten(1, (-1, scheme.group))
    codes = quantize(grouped, steps.unsqueeze(-1), *code_limits(scheme, steps))
    error = (codes * steps.unsqueeze(-1) - grouped).square().flatten(1)
    return [float(part.sum()) for part in split_slices(error, scheme)]


@pytest.mark.parametrize("bits", [(4, 2, 3), (5, 4, 3), (2, 4, 4)])
def test_columns_of_few_bits_cost_the_others_little(bits):
    """The error of each slice beside that of steps that are free."""
    weight = weights(64, 192, 0)
    scheme = sliced("columns", bits, 32)
    scale, multiplier = weight_grid(weight, scheme)
    assert multiplier is not None
    found = squared_error(weight, scheme, scale.unsqueeze(-1) * multiplier)
    free = [
        group_steps(part, width, 32)
        for part, width in zip(split_slices(weight, scheme), bits, strict=True)
    ]
    best = squared_error(weight, scheme, join_slices(free, scheme))
    for ours, ideal in zip(found, best, strict=True):
        assert ours < 1.15 * ideal


def test_multipliers_are_limited_by_slice():
    groups = torch.zeros(3, 4)
    assert multiplier_limits(sliced("columns", (8, 2), 8), groups).tolist() == [[1, 1, 63, 63]]
    assert multiplier_limits(alone(4, 8), groups).item() == 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": (4, 3), "columns": (4, 3)}, "not of both"),
        ({"rows": (4, 4)}, "differ"),
        ({"rows": (3, 2)}, "the most is that of the tensor"),
        ({"rows": (5, 4)}, "the most is that of the tensor"),
        ({"columns": (4, 3)}, "need groups"),
        ({"rows": (4, 3), "mode": Mode.DYNAMIC, "granularity": Granularity.TOKEN}, "static scales"),
    ],
)
def test_slices_that_cannot_be(changes, message):
    plain = {"bits": 4, "granularity": Granularity.CHANNEL, "mode": Mode.STATIC}
    with pytest.raises(ValueError, match=message):
        Scheme(**{**plain, **changes})
