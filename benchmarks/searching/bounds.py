"""What a search for bits is held against: the least that losses can add up to, and how near the limits costs can come.

The first is Lagrange's bound. For prices of the budgets, the least sum of losses and priced excesses is known layer by
layer, and no allocation within the limits has a smaller sum of losses; the prices that make it largest are sought. The
second is dynamic programming over the layers, on costs in thousandths of their limits.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvit.search.budgets import Budget

NEAR = 0.95  # of a limit
_BINS = 1000
_STEPS, _SLOWER = 3000, 0.995  # of the prices


def least_loss(budgets: Sequence[Budget], losses: Tensor) -> float:
    """No allocation within all limits has a smaller sum of losses, fp64 [choices, 7]."""
    own = _layer_losses(budgets[0], losses)
    shares = torch.stack([b.table.costs.flatten(1) / b.limit for b in budgets])
    room = torch.tensor([1 - b.table.fixed / b.limit for b in budgets], dtype=torch.float64)
    prices = own.amin(1).sum().expand(len(budgets)) + own.mean()
    best = -torch.inf
    for step in range(_STEPS):
        least, cells = (own + (prices.view(-1, 1, 1) * shares).sum(0)).min(1)
        best = max(best, float(least.sum() - prices @ room))
        excess = shares[:, torch.arange(len(own)), cells].sum(1) - room
        prices = prices * (3 * _SLOWER**step * excess.clamp(-1, 1)).exp()
    return best


def least_loss_near(budgets: Sequence[Budget], losses: Tensor) -> float:
    """The sum of an allocation that costs 95 to 100 % of every limit, the least of those that do with the error of the
    rounding to spare; infinite where there is none.
    """
    reached = _reach(budgets, losses)
    layers = budgets[0].table.costs.shape[0]
    room = (layers + 1) / 2 / _BINS  # half a bin a layer, and one of the fixed cost
    near = slice(int(np.ceil((NEAR + room) * _BINS)), int((1 - room) * _BINS) + 1)
    return float(reached[(near,) * len(budgets)].min(initial=np.inf))


def _reach(budgets: Sequence[Budget], losses: Tensor) -> NDArray[np.float32]:
    """The least sum of losses at every sum of costs up to the limits: [bins + 1] for every budget."""
    costs = [
        np.rint(b.table.costs.flatten(1).numpy() / b.limit * _BINS).astype(int) for b in budgets
    ]
    fixed = tuple(round(b.table.fixed / b.limit * _BINS) for b in budgets)
    reached = np.full((_BINS + 1,) * len(budgets), np.inf, dtype=np.float32)
    if max(fixed) > _BINS:
        return reached
    reached[fixed] = 0
    for layer, own in enumerate(_layer_losses(budgets[0], losses).tolist()):
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


def _layer_losses(budget: Budget, losses: Tensor) -> Tensor:
    """What each layer costs the answers, at 2 to 8 bits of weights by as many of inputs: fp64 [layers, 49]."""
    places = budget.table.places
    padded = torch.cat([losses, losses.new_zeros(1, losses.shape[1])])  # of what is settled
    weights, inputs = padded[places[:, 0]], padded[places[:, 1]]
    return (weights.unsqueeze(2) + inputs.unsqueeze(1)).flatten(1)
