import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvit.quant.compensation import compensate
from qvit_kernels.reference import code_range


def nearest(weight, steps, bits):
    return torch.round(weight / steps).clamp(*code_range(bits)) * steps


def inputs(rows, columns, seed=0):
    """Correlated, of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    sizes = torch.logspace(-1, 1, columns)
    return torch.randn(rows, columns, generator=generator) @ mixing * sizes


def one_by_one(weight, steps, moments, bits, damping):
    """Each column is rounded, and all that remain are chosen anew for the least error, by solving for them."""
    moments = moments.double() + damping * moments.diagonal().double().mean() * torch.eye(
        len(moments), dtype=torch.float64
    )
    order = moments.diagonal().argsort(descending=True, stable=True).tolist()
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
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(rows, columns, generator=generator)
    steps = torch.rand(rows, columns, generator=generator) * 0.2 + 0.2
    x = inputs(3 * columns, columns)
    moments = x.T @ x
    found = compensate(weight, steps, moments, code_range(4), 0.05)
    torch.testing.assert_close(found, one_by_one(weight, steps, moments, 4, 0.05))


def test_unrelated_inputs_are_rounded_to_nearest():
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    steps = torch.full((6, 1), 0.3)
    found = compensate(weight, steps, torch.diag(torch.rand(40) + 0.1), code_range(4))
    torch.testing.assert_close(found, nearest(weight, steps, 4))


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 4), st.integers(8, 80), st.integers(0, 10_000))
def test_the_output_is_closer_than_after_rounding_to_nearest(bits, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(16, columns, generator=generator)
    steps = torch.full((16, 1), 3 / 2 ** (bits - 1))
    x = inputs(4 * columns, columns, seed)
    found = compensate(weight, steps, x.T @ x, code_range(bits))
    codes = found / steps
    assert torch.equal(codes, codes.round())
    low, high = code_range(bits)
    assert codes.min() >= low
    assert codes.max() <= high
    ours = ((found - weight) @ x.T).square().mean()
    plain = ((nearest(weight, steps, bits) - weight) @ x.T).square().mean()
    assert ours < plain


def test_columns_that_are_never_seen_and_too_few_rows():
    weight = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    x = inputs(5, 30)
    x[:, [0, 7, 29]] = 0
    steps = torch.full((4, 1), 0.4)
    found = compensate(weight, steps, x.T @ x, code_range(4))
    assert found.isfinite().all()
    unseen = [0, 7, 29]
    torch.testing.assert_close(found[:, unseen], nearest(weight, steps, 4)[:, unseen])


def test_steps_may_differ_within_a_row_and_be_negative():
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([0.5, -0.25]).repeat_interleave(4).expand(3, 8)
    x = inputs(40, 8)
    codes = compensate(weight, steps, x.T @ x, code_range(3)) / steps
    torch.testing.assert_close(codes, codes.round())
    assert codes.min() >= -4
    assert codes.max() <= 3
