"""Bits from the most down, the cheapest first: another place to begin exchanges from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qvit.recipe import MAX_BITS, MIN_BITS
from qvit.search.budgets import Budget, fit, lowered
from qvit.search.exchange import loss_of


def descend_greedily(losses: Tensor, budgets: Sequence[Budget]) -> Tensor:
    """From eight bits everywhere, the bit that costs least for what it saves of the exceeded budgets goes, one at a
    time; in the end bits that still fit are added. losses: fp64 [choices, 7]; returns int64 [choices].
    """

    def move(bits: Tensor, limits: Sequence[Budget]) -> Tensor | None:
        exceeded = [limit for limit in limits if limit.violation(bits) > 0]
        saved = torch.stack([b.table.slopes(bits) / b.limit for b in exceeded]).sum(0)
        lost = loss_of(losses, (bits - 1).clamp(min=MIN_BITS)) - loss_of(losses, bits)
        price = torch.where((bits > MIN_BITS) & (saved > 0), lost / saved, torch.inf)
        if price.isinf().all():
            return None  # budgets that oppose each other
        fewer = bits.clone()
        fewer[price.argmin()] -= 1
        return fewer

    most = torch.full((len(losses),), MAX_BITS, dtype=torch.int64)
    return fit(lowered(most, budgets, move).double(), budgets)
