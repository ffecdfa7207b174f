"""Bounds, against trying everything, and against what a search finds."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from benchmarks.budgets import draw_budgets
from benchmarks.searching.bounds import NEAR, least_loss, least_loss_near
from qvit.search.exchange import exchange, loss_of
from qvit.search.greedy import descend_greedily
from tests.search.test_budgets import budget, random_table
from tests.search.test_costs import BITOPS, COUNT, SIZE

_ROUNDED = (
    0.006  # of a limit: what four layers and the fixed cost lose to whole thousandths, and more
)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 2])
def test_least_losses_bound_those_of_all_allocations(seed, count):
    generator = torch.Generator().manual_seed(seed)
    tables = [random_table(name, generator) for name in ("first", "second")]
    for table in tables:
        table.costs[:, :, 1:] = table.costs[:, :, :1]  # inputs cost nothing: the best are taken
    budgets = draw_budgets(tables, 7, generator)[:count]
    losses = torch.rand(7, 7, dtype=torch.float64, generator=generator)
    weights, inputs = tables[0].places.T.tolist()
    free = sum(float(losses[place].min()) for place in inputs if place < 7)
    found = []
    for rows in product(range(7), repeat=4):
        sums = [float(b.table.costs[range(4), list(rows), 0].sum()) + 0.1 for b in budgets]
        shares = [cost / b.limit for cost, b in zip(sums, budgets, strict=True)]
        found.append((float(losses[weights, list(rows)].sum()) + free, min(shares), max(shares)))

    def least(lowest: float, highest: float) -> float:
        return min(
            (s for s, low, high in found if low >= lowest and high <= highest), default=torch.inf
        )

    slack = 1 + 1e-6  # sums are fp32
    assert least_loss(budgets, losses) <= least(0, 1) * slack
    assert least(NEAR, 1) <= least_loss_near(budgets, losses) * slack
    assert least_loss_near(budgets, losses) <= least(NEAR + _ROUNDED, 1 - _ROUNDED) * slack


def test_what_is_found_is_near_the_least():
    """Of choices whose losses fall with bits, as they do, most of the way to the bound is gone."""
    sensitive = torch.rand(
        COUNT, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    losses = 10**sensitive * 4.0 ** -torch.arange(7, dtype=torch.float64)
    for shares in ((0.4, None), (0.3, 0.3), (0.5, 0.2)):
        budgets = [budget(t, s) for t, s in zip((SIZE, BITOPS), shares, strict=True) if s]
        found = descend_greedily(losses, budgets)
        better = exchange(found, losses, budgets)
        sums = [float(loss_of(losses, bits).sum()) for bits in (better, found)]
        # Sums are up to 0.4 % more than so small a file, for digits in its header; bounds are of sums.
        met = [replace(b, limit=max(b.limit, float(b.table.total(better)))) for b in budgets]
        assert least_loss(met, losses) <= sums[0] <= sums[1]
        assert sums[0] <= 1.25 * least_loss(met, losses)
