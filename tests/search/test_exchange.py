"""Exchanges of bits lower the sum of losses, and keep to the budgets."""

from dataclasses import replace

import pytest
import torch

from qvit.search.budgets import Budget, fit, hold
from qvit.search.exchange import exchange
from tests.search.test_costs import BITOPS, COUNT, SIZE, SPACE
from tests.search.test_descent import linear_table


def loss_of(losses, bits):
    return float(losses.gather(1, (bits - 2).unsqueeze(1)).sum())


@pytest.mark.parametrize("seed", range(3))
def test_no_pair_is_left_that_would_gain(seed):
    """Tables of a model, whose costs are products of weight and input bits: every pair is tried."""
    generator = torch.Generator().manual_seed(seed)
    scales = 10 ** (2 * torch.rand(COUNT, generator=generator, dtype=torch.float64))
    losses = scales.unsqueeze(1) * 0.25 ** torch.arange(7, dtype=torch.float64)
    budgets = [Budget(table, table.total(SPACE.uniform(4))) for table in (SIZE, BITOPS)]
    before = fit(SPACE.uniform(4).double(), budgets)
    found = exchange(before, losses, budgets)
    assert hold(budgets, found)
    assert loss_of(losses, found) < 0.8 * loss_of(losses, before)
    for more in range(COUNT):
        for less in range(COUNT):
            other = found.clone()
            other[more] += 1
            other[less] -= 1
            if more != less and other.max() <= 8 and other.min() >= 2 and hold(budgets, other):
                assert loss_of(losses, other) >= loss_of(losses, found) * (1 - 1e-8)


def test_what_holds_only_for_the_whole_is_asked_of_the_whole():
    """A card on which the second choice may not have more than four bits."""
    table = linear_table("latency", [1.0, 1.0])
    slow = replace(table, whole_of=lambda bits: table.total(bits) + 100 * (int(bits[1]) > 4))
    losses = torch.tensor([[1.0], [1000.0]]) * 0.25 ** torch.arange(7, dtype=torch.float64)
    start = torch.tensor([4, 4])
    assert exchange(start, losses, [Budget(table, 8.0)]).tolist() == [2, 6]
    assert exchange(start, losses, [Budget(slow, 8.0)]).tolist() == [4, 4]


def test_what_the_whole_allows_is_found_where_the_sum_exceeds_the_limit():
    """A card on which more than four bits of the second choice cost less than the sum says."""
    table = linear_table("latency", [1.0, 1.02])
    card = replace(
        table, whole_of=lambda bits: table.total(bits) - 0.05 * (int(bits[1]) > 4), apart=0.01
    )
    losses = torch.tensor([[1.0], [1000.0]]) * 0.25 ** torch.arange(7, dtype=torch.float64)
    start = torch.tensor([4, 4])
    limit = table.total(start)
    assert exchange(start, losses, [Budget(table, limit)]).tolist() == [4, 4]
    assert exchange(start, losses, [Budget(card, limit)]).tolist() == [2, 6]


def test_losses_that_bend_downwards_come_to_an_end(monkeypatch):
    """A bit more and a bit less of one choice changes nothing, though the losses on both sides add up to less."""
    tries = iter(range(1000))

    def holds_a_thousand_times(budgets, bits):
        assert next(tries, None) is not None, "it goes on for ever"
        return hold(budgets, bits)

    monkeypatch.setattr("qvit.search.exchange.hold", holds_a_thousand_times)
    losses = torch.tensor([[10.0, 9.0, 8.0, 2.0, 1.9, 1.8, 1.7]] * 2, dtype=torch.float64)
    budget = Budget(linear_table("size", [1.0, 1.0]), 8.0)
    assert sorted(exchange(torch.tensor([4, 4]), losses, [budget]).tolist()) == [3, 5]
