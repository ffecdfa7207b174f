"""Hard constraints by changing the gradient: HDX (DAC 2022), a reconstruction.

Of the paper its abstract and the method it builds on (DPM, AAAI 2021) are at hand; the rule below is derived, and the
constants (a margin of 1e-3 that grows by a hundredth) are remembered, not read.

Minimise L(x) subject to t_i(x) <= T_i. Let g be the gradient of L, and c_i that of the violation t_i / T_i - 1. A small
step -h d changes a violation by -h <d, c_i>, so it shrinks where <d, c_i> > 0. Where t_i <= T_i nothing is asked of d.
Where it is violated, d must have <d, c_i> >= delta_i, and is otherwise as near to g as can be:

    minimise |m|^2 / 2   subject to   <g + m, c_i> >= delta_i   for every violated i

Its Lagrangian |m|^2 / 2 - sum_i l_i (<g + m, c_i> - delta_i) is stationary at m = sum_i l_i c_i with l_i >= 0, and
l_i > 0 only where the constraint is met with equality. With one constraint this is

    m = 0                                          where <g, c> >= delta: g descends on t already
    m = (delta - <g, c>) / |c|^2  c                elsewhere, and then <g + m, c> = delta

(DPM prints a formula and ships code that differ from this in a sign.) With several, the violated constraints that are
met with equality are found by trying: there are three kinds of budget, eight subsets. A margin grows with every step at
which its constraint is violated, for descent at a rate of delta may be too slow, and starts anew once it is met.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import torch
from torch import Tensor

MARGIN, GROWTH = 1e-3, 1e-2
_EXACT = 1e-9  # relative to what is compared: fp64 leaves that much of an equality


class HardConstraints:
    """Turns gradients so that descent leads out of violation.

    count: Of the constraints; each has a margin, which grows while it is violated.
    margin: What <step, gradient of the violation> is at least, at first; growth: of the margin, a step.
    """

    def __init__(self, count: int, *, margin: float = MARGIN, growth: float = GROWTH) -> None:
        self._first, self._growth = margin, growth
        self.margins = torch.full((count,), margin, dtype=torch.float64)

    def steer(self, gradient: Tensor, violations: Sequence[float], slopes: Tensor) -> Tensor:
        """The nearest direction to a gradient that descends on all violated constraints, for the step x -= lr * it.

        gradient: [n]; violations: t / T - 1 of each constraint, violated where positive; slopes: [constraints, n], the
        gradients of these. Returns fp64 [n]. Raises ValueError where no direction descends on all of them.
        """
        violated = torch.tensor([v > 0 for v in violations])
        asked = violated & (slopes != 0).any(1)
        found = gradient.double()
        if asked.any():
            found = found + correction(found, slopes[asked].double(), self.margins[asked])
        grown = self.margins * (1 + self._growth)
        self.margins = torch.where(violated, grown, torch.full_like(grown, self._first))
        return found


def correction(gradient: Tensor, slopes: Tensor, margins: Tensor) -> Tensor:
    """The smallest m for which <gradient + m, slope> >= margin for every slope.

    gradient: fp64 [n]; slopes: fp64 [c, n], none zero; margins: fp64 [c], positive. Returns fp64 [n]. Raises ValueError
    where there is none: the slopes contradict each other.
    """
    lacking = margins - slopes @ gradient
    tolerance = _EXACT * (margins + (slopes @ gradient).abs() + slopes.norm(dim=1))
    for active in _subsets(len(slopes)):
        rows = slopes[active]
        weights = torch.linalg.lstsq(rows @ rows.T, lacking[active].unsqueeze(1), driver="gelsd")
        found = weights.solution.squeeze(1) @ rows
        if (weights.solution >= 0).all() and (slopes @ found >= lacking - tolerance).all():
            return found
    raise ValueError(
        "no step descends on all violated constraints: their gradients oppose each other"
    )


def _subsets(count: int) -> Iterator[list[int]]:
    for size in range(count + 1):
        for chosen in combinations(range(count), size):
            yield list(chosen)
