"""What budgets make of a gradient."""

import torch

from qvit.search.budgets import Budget
from qvit.search.steering import Steering
from tests.search.test_costs import BITOPS, COUNT, SIZE, SPACE


def test_what_is_not_exceeded_changes_nothing_but_length():
    gradient = torch.linspace(-1, 1, COUNT, dtype=torch.float64)
    budgets = [Budget(table, table.total(SPACE.uniform(8))) for table in (SIZE, BITOPS)]
    found = Steering(budgets, margin=0.1, growth=0.1).direct(gradient, SPACE.uniform(4).double())
    assert torch.allclose(found, gradient / gradient.norm())


def test_what_is_exceeded_falls_along_the_direction():
    gradient = -torch.ones(COUNT, dtype=torch.float64)  # more bits
    budgets = [Budget(table, table.total(SPACE.uniform(3))) for table in (SIZE, BITOPS)]
    bits = SPACE.uniform(6)
    found = Steering(budgets, margin=0.1, growth=0.1).direct(gradient, bits.double())
    for budget in budgets:
        assert float(found @ budget.table.slopes(bits)) > 0
