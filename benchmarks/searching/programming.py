"""Dynamic programming over the layers, on costs in thousandths of their limits: what a search for bits is held against.

Rounding is on the safe side. What is said to be near all limits is, and no allocation within them has a smaller sum of
losses than what is said to be the least.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvit.search.budgets import Budget

NEAR = 0.95  # of a limit
_BINS = 1000


def least_loss(budgets: Sequence[Budget], losses: Tensor) -> float:
    """No allocation within all limits has a smaller sum; infinite where there is none. losses: fp64 [choices, 7]."""
    reached = _reach(budgets, losses, np.floor)
    return float(reached.min())


def least_loss_near(budgets: Sequence[Budget], losses: Tensor) -> float:
    """The sum of an allocation that costs 95 to 100 % of every limit, the least of those that do with the error of the
    rounding to spare; infinite where there is none.
    """
    reached = _reach(budgets, losses, np.rint)
    layers = budgets[0].table.costs.shape[0]
    room = (layers + 1) / 2 / _BINS  # half a bin a layer, and one of the fixed cost
    near = slice(int(np.ceil((NEAR + room) * _BINS)), int((1 - room) * _BINS) + 1)
    return float(reached[(near,) * len(budgets)].min(initial=np.inf))


def _reach(
    budgets: Sequence[Budget], losses: Tensor, rounded: Callable[..., NDArray[np.float64]]
) -> NDArray[np.float32]:
    """The least sum of losses at every sum of costs up to the limits: [bins + 1] for every budget."""
    costs = [
        rounded(b.table.costs.flatten(1).numpy() / b.limit * _BINS).astype(int) for b in budgets
    ]
    fixed = tuple(int(rounded(b.table.fixed / b.limit * _BINS)) for b in budgets)
    reached = np.full((_BINS + 1,) * len(budgets), np.inf, dtype=np.float32)
    if max(fixed) > _BINS:
        return reached
    reached[fixed] = 0
    for layer, own in enumerate(_layer_losses(budgets[0], losses)):
        after = np.full_like(reached, np.inf)
        for step, loss in _cheapest(costs, layer, own).items():
            into = tuple(slice(s, None) for s in step)
            kept = tuple(slice(None, _BINS + 1 - s) for s in step)
            np.minimum(after[into], reached[kept] + loss, out=after[into])
        reached = after
    return reached


def _cheapest(
    costs: Sequence[NDArray[np.int64]], layer: int, losses: Sequence[float]
) -> dict[tuple[int, ...], float]:
    """Of all bits of a layer that cost the same, the smallest loss."""
    found: dict[tuple[int, ...], float] = {}
    for cell, loss in enumerate(losses):
        step = tuple(int(cost[layer, cell]) for cost in costs)
        if max(step) <= _BINS:
            found[step] = min(loss, found.get(step, np.inf))
    return found


def _layer_losses(budget: Budget, losses: Tensor) -> list[list[float]]:
    """What each layer costs the answers, at 2 to 8 bits of weights by as many of inputs: [layers][49]."""
    table = budget.table
    padded = torch.cat(
        [losses, losses.new_zeros(1, losses.shape[1])]
    )  # what is settled is lost anyway
    weights, inputs = padded[table.places[:, 0]], padded[table.places[:, 1]]
    return (weights.unsqueeze(2) + inputs.unsqueeze(1)).flatten(1).tolist()
