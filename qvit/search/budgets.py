"""Budgets: costs that an allocation may not exceed, and allocations that keep to them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qvit.errors import UsageError
from qvit.recipe import MAX_BITS, MIN_BITS
from qvit.search.costs import CostTable


@dataclass(frozen=True, slots=True)
class Budget:
    """A cost that may not exceed a limit, in the table's unit."""

    table: CostTable
    limit: float

    def violation(self, bits: Tensor | Sequence[int]) -> float:
        """By which share of the limit an allocation exceeds it; negative where it does not."""
        return self.table.total(bits) / self.limit - 1

    def check(self) -> None:
        """Raises UsageError where no allocation meets the budget, with the smallest that one does."""
        least = self.table.smallest
        if least > self.limit:
            raise UsageError(
                f"a {self.table.name} of {self.limit:,.0f} {self.table.unit} cannot be met: the smallest that is"
                f" possible, with two bits everywhere, is {least:,.0f} {self.table.unit}"
            )


def meets(budgets: Sequence[Budget], bits: Tensor | Sequence[int]) -> bool:
    """Whether an allocation keeps to all budgets."""
    return all(budget.violation(bits) <= 0 for budget in budgets)


def largest_uniform(budgets: Sequence[Budget], count: int) -> int:
    """The most bits that all of `count` choices can have at once; two where the budgets are met at all."""
    fitting = [b for b in range(MIN_BITS, MAX_BITS + 1) if meets(budgets, [b] * count)]
    return max(fitting, default=MIN_BITS)


def fit(wanted: Tensor, budgets: Sequence[Budget]) -> Tensor:
    """The allocation near real-valued bits that keeps to all budgets and to which no bit can be added.

    Rounded first; while a budget is exceeded, the choice that lies farthest above what is wanted, of those that cost
    anything there, loses a bit; then the one farthest below gains one, as long as one fits.

    wanted: fp64 [choices]. Returns int64 [choices]. Raises UsageError for budgets that nothing meets.
    """
    for budget in budgets:
        budget.check()
    bits = wanted.round().clamp(MIN_BITS, MAX_BITS).long()
    while not meets(budgets, bits):
        exceeded = [b.table.slopes(bits) for b in budgets if b.violation(bits) > 0]
        dear = (torch.stack(exceeded) > 0).any(0) & (bits > MIN_BITS)
        bits[torch.where(dear, bits - wanted, -torch.inf).argmax()] -= 1
    free = bits < MAX_BITS
    while free.any():
        place = int(torch.where(free, wanted - bits, -torch.inf).argmax())
        bits[place] += 1
        if not meets(budgets, bits):
            bits[place] -= 1
            free[place] = (
                False  # for good: other bits only grow, and its own then cost as much or more
            )
        free[place] &= bits[place] < MAX_BITS
    return bits
