"""What counts as met, and what rivals do."""

from dataclasses import replace

import torch

from benchmarks.budgets import _attempt, _describe
from benchmarks.budgets import table as table_of
from benchmarks.searching.rivals import draw_random
from qvit.search.budgets import Budget, check_budgets, hold
from qvit.search.greedy import descend_greedily
from tests.search.test_budgets import random_table


def test_rivals_meet_their_budgets():
    generator = torch.Generator().manual_seed(0)
    table = random_table("size", generator)
    table.costs.copy_(table.costs.cumsum(1).cumsum(2))  # more bits cost more
    budgets = [Budget(table, (table.smallest + table.largest) / 2)]
    check_budgets(budgets)
    losses = 4.0 ** -torch.arange(7, dtype=torch.float64).expand(7, 7)
    assert hold(budgets, draw_random(7, budgets, generator))
    assert hold(budgets, descend_greedily(losses, budgets))


LOSSES = torch.ones(7, 7, dtype=torch.float64)


def _find(budgets):
    """Two bits everywhere, or a refusal."""
    check_budgets(budgets)
    return torch.full((7,), 2)


def test_a_refused_budget_is_one_that_is_not_met():
    generator = torch.Generator().manual_seed(0)
    table = random_table("size", generator)
    least = table.smallest
    refused = _attempt(_find, [Budget(table, 0.9 * least)], LOSSES)
    assert not refused["meets"]
    assert "cannot be met" in refused["refused"]
    found = _attempt(_find, [Budget(table, table.largest)], LOSSES)
    assert found["meets"]
    penalty = {"meets": True, "of_limit": {"size": 0.97}, "sum_of_losses": 9.0}
    budgets = [
        {
            "near_exists": exists,
            "least_loss": 6.0,
            "methods": {"hdx": method, "penalty": penalty},
        }
        for exists, method in ((True, refused), (False, found))
    ]
    lines = table_of([{"budgets": budgets}]).splitlines()
    assert lines[2:] == [
        "| hdx | 1 of 2 | 1 | 0 of 1 | 1.167, 1.167 at most |",
        "| penalty | 2 of 2 | 0 | 1 of 1 | 1.500, 1.500 at most |",
    ]


def test_what_meets_a_limit_is_judged_by_the_whole_model():
    table = random_table("latency", torch.Generator().manual_seed(0))
    bits = torch.full((7,), 2)
    limit = table.total(bits)
    slower = replace(table, whole_of=lambda some: 1.01 * table.total(some))
    assert _describe(bits, [Budget(table, limit)], LOSSES)["meets"]
    described = _describe(bits, [Budget(slower, limit)], LOSSES)
    assert not described["meets"]
    assert described["of_limit"] == {"latency": 1.01}
