"""Allocations to hold the found one against: random ones and greedy ones."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qvit.recipe import MAX_BITS, MIN_BITS
from qvit.search.budgets import Budget, fit, meets


def draw_random(count: int, budgets: Sequence[Budget], generator: torch.Generator) -> Tensor:
    """Uniform real-valued bits, made to meet the budgets so that no bit can be added: int64 [count]."""
    spread = MAX_BITS - MIN_BITS
    wanted = MIN_BITS + spread * torch.rand(count, dtype=torch.float64, generator=generator)
    return fit(wanted, budgets)


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
        bits[price.argmin()] -= 1
    return fit(bits.double(), budgets)


def measure_alone(measure: Callable[[Tensor], float], count: int) -> Tensor:
    """The sensitivities that greedy searches mostly go by: what `measure` says of a model of eight bits in which one of
    `count` choices has fewer, fp64 [choices, 7]; never less than with a bit more.
    """
    most = torch.full((count,), MAX_BITS, dtype=torch.int64)
    losses = torch.full((count, MAX_BITS - MIN_BITS + 1), measure(most), dtype=torch.float64)
    for choice in range(count):
        for bits in range(MAX_BITS - 1, MIN_BITS - 1, -1):
            alone = most.clone()
            alone[choice] = bits
            place = bits - MIN_BITS
            losses[choice, place] = max(measure(alone), float(losses[choice, place + 1]))
    return losses


def loss_of(losses: Tensor, bits: Tensor) -> Tensor:
    """What each choice costs at its bits: fp64 [choices]."""
    return losses.gather(1, (bits - MIN_BITS).unsqueeze(1)).squeeze(1)
