"""Which way bits go: down the gradient of a loss, turned towards the budgets by HDX's rule, or pressed by a penalty."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qvit.search.budgets import Budget
from qvit.search.hdx import HardConstraints

# Steps in units of a gradient's: where two budgets nearly oppose each other, a correction has no end.
_LONGEST = 5.0


class Steering:
    """HDX's rule for gradients of length 1, where exceeded budgets may oppose each other.

    margin, growth: As HardConstraints has them.
    """

    def __init__(self, budgets: Sequence[Budget], *, margin: float, growth: float) -> None:
        self._budgets = budgets
        self._constraints = HardConstraints(len(budgets), margin=margin, growth=growth)

    def direct(self, gradient: Tensor, bits: Tensor) -> Tensor:
        """The direction to descend along, fp64 [choices]. gradient: of the loss; bits: an allocation."""
        gradient = unit(gradient)
        violations = [budget.violation(bits) for budget in self._budgets]
        costs = torch.stack([unit(budget.table.slopes(bits)) for budget in self._budgets])
        try:
            return shortened(self._constraints.steer(gradient, violations, costs))
        except ValueError:  # they oppose each other: towards the one that is exceeded most
            worst = max(violations)
            only = [v if v == worst else 0.0 for v in violations]
            return shortened(self._constraints.steer(gradient, only, costs))


def press(violations: Sequence[float], slopes: Tensor, penalty: float) -> Tensor:
    """The gradient of Q-ViT's penalty, `penalty` times the sum of the squares of what is exceeded: fp64 [choices].

    violations: Of each budget, in any unit, exceeded where positive; slopes: fp64 [budgets, choices], their gradients.
    """
    return 2 * penalty * torch.tensor(violations, dtype=torch.float64).clamp(min=0) @ slopes


def unit(gradient: Tensor) -> Tensor:
    """A gradient of length 1, or 0."""
    length = gradient.norm()
    return gradient / length if length > 0 else gradient


def shortened(direction: Tensor) -> Tensor:
    """A direction of limited length."""
    return direction / max(1.0, float(direction.norm()) / _LONGEST)
