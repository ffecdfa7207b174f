"""Bits from the most down, the cheapest first: another place to begin exchanges from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qvit.recipe import MAX_BITS, MIN_BITS
from qvit.search.budgets import Budget, fit, meets
from qvit.search.exchange import loss_of


def descend_greedily(losses: Tensor, budgets: Sequence[Budget]) -> Tensor:
    """From eight bits everywhere, the bit that costs least for what it saves of the exceeded budgets goes, one at a
    time; in the end bits that still fit are added. losses: fp64 [choices, 7]; returns int64 [choices].
    """
    bits = torch.full((len(losses),), MAX_BITS, dtype=torch.int64)
    while not meets(budgets, bits):
        exceeded = [budget for budget in budgets if budget.violation(bits) > 0]
        saved = torch.stack([b.table.slopes(bits) / b.limit for b in exceeded]).sum(0)
        lost = loss_of(losses, (bits - 1).clamp(min=MIN_BITS)) - loss_of(losses, bits)
        price = torch.where((bits > MIN_BITS) & (saved > 0), lost / saved, torch.inf)
        if price.isinf().all():
            break  # budgets that oppose each other
        bits[price.argmin()] -= 1
    return fit(bits.double(), budgets)
