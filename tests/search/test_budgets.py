"""Allocations that keep to budgets, on the tables of a small model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvit.errors import UsageError
from qvit.search.budgets import Budget, fit, largest_uniform, meets
from tests.search.test_costs import BITOPS, COUNT, SIZE, SPACE

WANTED = st.lists(st.floats(0, 10), min_size=COUNT, max_size=COUNT).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)
SHARES = st.floats(0, 1)


def budget(table, share: float) -> Budget:
    """So far between what two and eight bits cost."""
    least, most = table.smallest, table.total(SPACE.uniform(8))
    return Budget(table, least + share * (most - least))


@settings(max_examples=20)
@given(WANTED, st.one_of(st.none(), SHARES), st.one_of(st.none(), SHARES))
def test_no_budget_is_exceeded_and_no_bit_can_be_added(wanted, size, bitops):
    shares = [(SIZE, size), (BITOPS, bitops)]
    budgets = [budget(table, share) for table, share in shares if share is not None]
    bits = fit(wanted, budgets)
    assert meets(budgets, bits)
    assert bits.min() >= 2
    assert bits.max() <= 8
    for place in range(COUNT):
        more = bits.clone()
        more[place] += 1
        assert more[place] > 8 or not meets(budgets, more)


def test_what_fits_is_taken_as_it_is():
    wanted = torch.full((COUNT,), 4.0, dtype=torch.float64)
    exactly = Budget(BITOPS, BITOPS.total(SPACE.uniform(4)))
    assert torch.equal(fit(wanted, [exactly]), SPACE.uniform(4))
    assert largest_uniform([exactly], COUNT) == 4
    assert largest_uniform([exactly, budget(SIZE, 0)], COUNT) == 2


@pytest.mark.parametrize("table", [SIZE, BITOPS], ids=["size", "bitops"])
def test_an_impossible_budget_names_the_smallest(table):
    with pytest.raises(UsageError, match=f"{table.smallest:,.0f} {table.unit}"):
        fit(SPACE.uniform(4).double(), [Budget(table, table.smallest - 1)])
    assert torch.equal(
        fit(SPACE.uniform(4).double(), [budget(table, 0)]).clamp(max=2), SPACE.uniform(2)
    )
