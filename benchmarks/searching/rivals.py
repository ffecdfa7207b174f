"""What found allocations are held against: random ones, and sensitivities that greedy searches mostly go by."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qvit.recipe import MAX_BITS, MIN_BITS
from qvit.search import levels
from qvit.search.budgets import Budget, fit
from qvit.search.descent import Direct
from qvit.search.steering import press, shortened, unit


def draw_random(count: int, budgets: Sequence[Budget], generator: torch.Generator) -> Tensor:
    """Uniform real-valued bits, made to meet the budgets so that no bit can be added: int64 [count]."""
    spread = MAX_BITS - MIN_BITS
    wanted = MIN_BITS + spread * torch.rand(count, dtype=torch.float64, generator=generator)
    return fit(wanted, budgets)


def penalized(budgets: Sequence[Budget], penalty: float) -> Direct:
    """Q-ViT's penalty in place of HDX's rule, for `descend`: of violations in shares of the limits, whose gradients
    have length 1, as that of the losses has.
    """

    def direct(gradient: Tensor, bits: Tensor) -> Tensor:
        violations = [budget.violation(bits) for budget in budgets]
        slopes = torch.stack([unit(budget.table.slopes(bits)) for budget in budgets])
        return shortened(unit(gradient) + press(violations, slopes, penalty))

    return direct


def measure_sensitivities(measure: Callable[[Tensor], float], count: int) -> Tensor:
    """The sensitivities that greedy searches mostly go by: what `measure` says of a model of eight bits in which one of
    `count` choices has fewer, fp64 [choices, 7]; never less than with a bit more.
    """
    found, least = levels.measure_alone(measure, count, range(MIN_BITS, MAX_BITS))
    whole = torch.full((count, 1), least, dtype=torch.float64)
    return torch.cat([found, whole], 1).flip(1).cummax(1).values.flip(1)
