"""The proof that an allocation near a limit exists, against trying everything."""

from itertools import product

import pytest
import torch

from benchmarks.budgets import NEAR, draw_budgets, near_exists
from benchmarks.searching.rivals import descend_greedily, draw_random
from qvit.search.budgets import Budget, check_budgets, meets
from tests.search.test_budgets import random_table


@pytest.mark.parametrize("seed", range(4))
def test_near_exists_only_where_it_does(seed):
    generator = torch.Generator().manual_seed(seed)
    tables = [random_table(name, generator) for name in ("first", "second")]
    for table in tables:
        table.costs[:, :, 1:] = table.costs[:, :, :1]  # seven costs a layer, 2401 allocations
    budgets = draw_budgets(tables, 7, generator)
    sums = [
        [
            float(t.costs[range(4), list(rows), 0].sum()) + t.fixed
            for rows in product(range(7), repeat=4)
        ]
        for t in tables
    ]
    shares = [[cost / b.limit for cost in s] for s, b in zip(sums, budgets, strict=True)]
    for some, limited in ((shares, budgets), (shares[:1], budgets[:1])):
        pairs = list(zip(*some, strict=True))
        there = any(all(NEAR <= share <= 1 for share in pair) for pair in pairs)
        surely = any(all(NEAR + 0.006 <= share <= 0.994 for share in pair) for pair in pairs)
        assert surely <= near_exists(limited) <= there


def test_rivals_meet_their_budgets():
    generator = torch.Generator().manual_seed(0)
    table = random_table("size", generator)
    table.costs.copy_(table.costs.cumsum(1).cumsum(2))  # more bits cost more
    budgets = [Budget(table, (table.smallest + table.largest) / 2)]
    check_budgets(budgets)
    losses = 4.0 ** -torch.arange(7, dtype=torch.float64).expand(7, 7)
    assert meets(budgets, draw_random(7, budgets, generator))
    assert meets(budgets, descend_greedily(losses, budgets))
