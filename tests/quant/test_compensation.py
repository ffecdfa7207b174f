import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvit.quant import compensation
from qvit.quant.compensation import compensate
from qvit.quant.ranges import Grid, weight_grid
from qvit.quant.schemes import Granularity, Mode, Scheme
from qvit.quant.slices import code_limits, multiplier_limits, quantize_weight
from qvit_kernels.reference import code_range

# Codes are chosen, and the grid stays as it is.
keep_grid = functools.partial(compensate, refit=False)


def scheme(bits, group=0, **slices):
    """Of a weight."""
    granularity = Granularity.GROUP if group else Granularity.CHANNEL
    return Scheme(bits=bits, granularity=granularity, mode=Mode.STATIC, group=group, **slices)


def nearest(weight, steps, bits):
    return torch.round(weight / steps).clamp(*code_range(bits)) * steps


def inputs(rows, columns, seed=0):
    """Correlated, of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    sizes = torch.logspace(-1, 1, columns)
    return torch.randn(rows, columns, generator=generator) @ mixing * sizes


def random_weight(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def damped(moments, damping):
    moments = moments.double()
    return moments + damping * moments.diagonal().mean() * torch.eye(len(moments)).double()


def squared_errors(found, weight, moments):
    """Of each row's output."""
    error = (found - weight).double()
    return ((error @ moments) * error).sum(1)


def one_by_one(weight, steps, moments, bits, order):
    """Each column is rounded, and all that remain are chosen anew for the least error, by solving for them."""
    weight = weight.double().clone()
    for position, column in enumerate(order):
        rounded = nearest(weight[:, column], steps[:, column], bits)
        error = rounded - weight[:, column]
        weight[:, column] = rounded
        rest = order[position + 1 :]
        if rest:
            among = moments[rest][:, rest]
            shift = torch.linalg.solve(among, moments[rest, column])
            weight[:, rest] -= error[:, None] * shift
    return weight.float()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 7), (5, 64), (4, 150)])
def test_every_column_makes_good_what_those_before_it_spoiled(rows, columns):
    weight = random_weight(rows, columns, 1)
    grid = Grid(torch.rand(rows, generator=torch.Generator().manual_seed(2)) * 0.2 + 0.2, None)
    x = inputs(3 * columns, columns)
    moments = x.T @ x
    found, kept = keep_grid(weight, grid, moments, scheme(4), 0.05)
    order = moments.diagonal().argsort(descending=True, stable=True).tolist()
    steps = grid.steps().expand(weight.shape)
    torch.testing.assert_close(found, one_by_one(weight, steps, damped(moments, 0.05), 4, order))
    assert torch.equal(kept.scale, grid.scale)
    assert kept.multiplier is None


def test_groups_are_rounded_one_after_the_other():
    """The one with the largest inputs first, and so are the columns in each."""
    weight, x = random_weight(3, 12), inputs(40, 12)
    grid = Grid(torch.full((3,), 0.1), torch.tensor([3.0, -2, 4]).expand(3, 3))
    moments = x.T @ x
    found, kept = keep_grid(weight, grid, moments, scheme(3, 4), 0.05)
    sizes = moments.diagonal().view(3, 4)
    order = [
        4 * group + column
        for group in sizes.sum(1).argsort(descending=True).tolist()
        for column in sizes[group].argsort(descending=True).tolist()
    ]
    steps = grid.steps().repeat_interleave(4, 1)
    torch.testing.assert_close(found, one_by_one(weight, steps, damped(moments, 0.05), 3, order))
    assert kept.multiplier is not None
    assert torch.equal(kept.multiplier, grid.multiplier)


def test_unrelated_inputs_are_rounded_to_nearest():
    weight, grid = random_weight(6, 40), Grid(torch.full((6,), 0.3), None)
    found, _ = keep_grid(weight, grid, torch.diag(torch.rand(40) + 0.1), scheme(4))
    torch.testing.assert_close(found, nearest(weight, 0.3, 4))


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 4), st.integers(8, 80), st.integers(0, 10_000))
def test_the_output_is_closer_than_after_rounding_to_nearest(bits, columns, seed):
    weight, x = random_weight(16, columns, seed), inputs(4 * columns, columns, seed)
    grid = weight_grid(weight, scheme(bits))
    found, grid = compensate(weight, grid, x.T @ x, scheme(bits))
    codes = found / grid.steps()
    torch.testing.assert_close(codes, codes.round())
    low, high = code_range(bits)
    assert codes.min() >= low - 1e-3
    assert codes.max() <= high + 1e-3
    ours = ((found - weight) @ x.T).square().mean()
    plain = (nearest(weight, weight_grid(weight, scheme(bits)).steps(), bits) - weight) @ x.T
    assert ours < plain.square().mean()


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 8), st.integers(0, 10_000))
def test_a_row_takes_another_scale_only_where_its_output_is_closer(bits, seed):
    weight, x = random_weight(12, 24, seed), inputs(60, 24, seed)
    moments, before = x.T @ x, weight_grid(weight, scheme(bits))
    kept, _ = keep_grid(weight, before, moments, scheme(bits), 0.1)
    found, grid = compensate(weight, before, moments, scheme(bits), 0.1)
    errors = [squared_errors(w, weight, damped(moments, 0.1)) for w in (kept, found)]
    moved = grid.scale != before.scale
    assert moved.any()
    assert (errors[1][moved] < errors[0][moved]).all()
    assert torch.equal(found[~moved], kept[~moved])


def test_a_group_takes_the_multiplier_with_which_it_adds_least(monkeypatch):
    """A single group: what it adds is all there is, so that no multiplier near its own is better."""
    weight, x = random_weight(20, 8), inputs(40, 8)
    moments, one = x.T @ x, scheme(4, 8)
    before = Grid(torch.full((20,), 0.05), torch.full((20, 1), -6.0))
    monkeypatch.setattr(compensation, "_SCALES", (1.0,))
    _, grid = compensate(weight, before, moments, one)
    assert grid.multiplier is not None
    tried = [Grid(before.scale, torch.full((20, 1), -float(m))) for m in range(4, 9)]
    kept = [keep_grid(weight, each, moments, one)[0] for each in tried]
    errors = torch.stack([squared_errors(w, weight, damped(moments, 0.01)) for w in kept])
    assert torch.equal(grid.multiplier.squeeze(1), -4.0 - errors.argmin(0))
    assert len(grid.multiplier.unique()) > 1


@pytest.mark.parametrize(
    "of",
    [
        scheme(4, 8),
        scheme(2, 16),
        scheme(8, 0, rows=(4, 8)),
        scheme(6, 8, rows=(2, 6, 4)),
        scheme(8, 8, columns=(3, 8, 4)),
    ],
    ids=lambda of: f"{of.bits}-{of.group}-{of.rows or of.columns}",
)
def test_codes_and_multipliers_stay_within_their_limits(of):
    weight, x = random_weight(12, 48), inputs(100, 48)
    before = weight_grid(weight, of)
    found, grid = compensate(weight, before, x.T @ x, of, 0.3)
    # weights are codes times steps, whatever becomes of the grid
    again = quantize_weight(found, grid.steps(), of)
    spread = grid.steps().repeat_interleave(48 // grid.steps().shape[1], 1)
    torch.testing.assert_close(found, again * spread)
    low, high = (torch.as_tensor(x) for x in code_limits(of, grid.steps()))
    grouped = again.unflatten(1, (grid.steps().shape[1], -1))
    assert (grouped >= low).all()
    assert (grouped <= high).all()
    if grid.multiplier is None:
        assert before.multiplier is None
        return
    size = grid.multiplier.abs()
    assert torch.equal(size, size.round())
    assert (size >= 1).all()
    assert (size <= multiplier_limits(of, size)).all()
    assert before.multiplier is not None
    assert torch.equal(grid.multiplier.sign(), before.multiplier.sign())
    assert not torch.equal(grid.multiplier, before.multiplier)


def random_grid(weight, group):
    """For 3 bits, with multipliers of up to ten times the least."""
    generator = torch.Generator().manual_seed(7)
    groups = torch.randint(4, 20, (len(weight), weight.shape[1] // group), generator=generator)
    return Grid(torch.full((len(weight),), 0.04), groups.float())


@pytest.mark.parametrize(
    "size", [8, 100]
)  # of a group: several are in a block, and a block is in one
def test_what_moves_the_grid_rounds_on_it_as_on_one_that_stays(size):
    weight, x = random_weight(20, 4 * size), inputs(8 * size, 4 * size)
    of, moments, before = scheme(3, size), x.T @ x, random_grid(weight, size)
    found, grid = compensate(weight, before, moments, of, 0.1)
    again, _ = keep_grid(weight, grid, moments, of, 0.1)
    torch.testing.assert_close(found, again)
    kept, _ = keep_grid(weight, before, moments, of, 0.1)
    errors = [squared_errors(w, weight, damped(moments, 0.1)) for w in (kept, found)]
    assert errors[1].sum() < 0.9 * errors[0].sum()


def test_each_row_takes_the_scale_with_which_all_its_groups_add_least(monkeypatch):
    weight, x = random_weight(30, 64), inputs(200, 64)
    of, moments, before = scheme(3, 16), x.T @ x, random_grid(weight, 16)
    found, _ = compensate(weight, before, moments, of, 0.1)
    alone = []
    for factor in compensation._SCALES:
        monkeypatch.setattr(compensation, "_SCALES", (factor,))
        alone.append(compensate(weight, before, moments, of, 0.1)[0])
    errors = [squared_errors(w, weight, damped(moments, 0.1)) for w in alone]
    torch.testing.assert_close(
        squared_errors(found, weight, damped(moments, 0.1)), torch.stack(errors).amin(0)
    )


def test_rows_that_are_rounded_in_parts_are_as_those_rounded_together(monkeypatch):
    weight, x = random_weight(30, 32), inputs(100, 32)
    of, before = scheme(3, 16), random_grid(weight, 16)
    whole = compensate(weight, before, x.T @ x, of)
    monkeypatch.setattr(compensation, "_AT_ONCE", 7 * 32 * len(compensation._SCALES))
    parts = compensate(weight, before, x.T @ x, of)
    assert torch.equal(parts[0], whole[0])
    assert torch.equal(parts[1].steps(), whole[1].steps())


def test_moments_may_have_any_factor():
    """With columns that are never seen, too."""
    weight, x = random_weight(30, 32), inputs(100, 32)
    x[:, [3, 4, 5, 17, 31]] = 0
    of, before = scheme(3, 16), random_grid(weight, 16)
    found = [compensate(weight, before, factor * x.T @ x, of, 0.3) for factor in (1.0, 2.0**-20)]
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1].steps(), found[1][1].steps())


def test_a_grid_on_which_nothing_is_gained_stays():
    of, before = scheme(3, 16), weight_grid(random_weight(4, 32), scheme(3, 16))
    found, kept = compensate(torch.zeros(4, 32), before, torch.eye(32), of)
    assert not found.any()
    assert torch.equal(kept.steps(), before.steps())


def test_a_linear_that_sees_nothing_is_rounded_all_the_same():
    weight, of = random_weight(4, 32), scheme(3, 16)
    found, _ = compensate(weight, weight_grid(weight, of), torch.zeros(32, 32), of)
    assert (found - weight).square().sum() < 0.1 * weight.square().sum()


def test_rows_without_groups_beside_others_keep_multipliers_of_one():
    of = scheme(6, 8, rows=(3, 6))
    weight, x = random_weight(8, 32), inputs(60, 32)
    _, grid = compensate(weight, weight_grid(weight, of), x.T @ x, of)
    assert grid.multiplier is not None
    assert (grid.multiplier[4:] == 1).all()
    assert (grid.multiplier[:4] != 1).any()


def test_columns_that_are_never_seen_and_too_few_rows():
    weight, x = random_weight(4, 30), inputs(5, 30)
    unseen = [0, 7, 29]
    x[:, unseen] = 0
    grid = Grid(torch.full((4,), 0.4), None)
    found, _ = keep_grid(weight, grid, x.T @ x, scheme(4))
    assert found.isfinite().all()
    torch.testing.assert_close(found[:, unseen], nearest(weight, 0.4, 4)[:, unseen])
