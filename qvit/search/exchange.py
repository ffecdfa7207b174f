"""Exchanges of bits between two choices: what a descent over real-valued bits leaves to gain once they are rounded."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qvit.recipe import MAX_BITS, MIN_BITS
from qvit.search.budgets import Budget, hold

_LEAST_GAIN = 1e-9  # of the sum: what gains less is rounding


def exchange(bits: Tensor, losses: Tensor, budgets: Sequence[Budget]) -> Tensor:
    """While a bit less here and a bit more there lowers the sum of losses within the budgets, the pair that does most.

    bits: int64 [choices], on which the budgets hold; losses: fp64 [choices, 7], at 2 to 8 bits.
    """
    while (better := _best_pair(bits, losses, budgets)) is not None:
        bits = better
    return bits


def _best_pair(bits: Tensor, losses: Tensor, budgets: Sequence[Budget]) -> Tensor | None:
    gained, lost = _change(losses, bits, 1), _change(losses, bits, -1)
    change = gained.unsqueeze(1) + lost  # more in the row's choice, less in the column's
    change.fill_diagonal_(torch.inf)  # with itself, which changes nothing and may look like a gain
    for budget in budgets:  # as if choices were alone in their layers
        table = budget.table
        steps = table.steps(bits).unsqueeze(1) + table.steps(bits, -1)
        change[steps > budget.room(bits)] = torch.inf
    least = -_LEAST_GAIN * float(loss_of(losses, bits).sum())
    for place in change.flatten().argsort().tolist():
        more, less = divmod(place, len(bits))
        if change[more, less] >= least:
            return None
        other = bits.clone()
        other[more] += 1
        other[less] -= 1
        if hold(budgets, other):
            return other
    return None


def _change(losses: Tensor, bits: Tensor, by: int) -> Tensor:
    """Of each choice's loss with so many bits more; infinite where there are none: fp64 [choices]."""
    other = (bits + by).clamp(MIN_BITS, MAX_BITS)
    change = loss_of(losses, other) - loss_of(losses, bits)
    return torch.where(other == bits + by, change, torch.inf)


def loss_of(losses: Tensor, bits: Tensor) -> Tensor:
    """What each choice costs at its bits: fp64 [choices]."""
    return losses.gather(1, (bits - MIN_BITS).unsqueeze(1)).squeeze(1)
