"""Gradient inundation: a step that is long enough to change integers (AIT, Choi et al., CVPR 2022, section 4).

Late in training the steps of a low-bit network are shorter than the way to the next rounding threshold: weights move,
and none of the integers does. Here the step of every weight tensor is multiplied by the least factor, found each time,
with which at least a share p of its integers changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qvit.models.student import IntegerWeight


@dataclass(frozen=True, slots=True)
class Crossing:
    """What one step did to the integers of one weight.

    Attributes:
        alpha: The factor of its step.
        share: Of its integers that changed.
        plain: Of them that would have changed without the factor.
        capped: Whether the largest factor was not enough.
    """

    alpha: float
    share: float
    plain: float
    capped: bool


@torch.no_grad()
def inundate(
    weight: IntegerWeight, before: Tensor, share: float, *, cap: float, bisections: int
) -> Crossing:
    """Lengthen the step that has just been taken, in place.

    The factor is found by doubling and bisection: all powers of two up to the cap are tried at once, on a stack of
    candidates, then the last doubling is halved in turn. The published search ends at its last midpoint, which may
    change fewer than p; this one keeps the least factor that was seen to change enough.

    Args:
        weight: Its parameter holds the values after an ordinary step; the optimiser's momentum is not touched.
        before: The values before, same shape.
        share: p, the least share of integers to change.
        cap: Largest factor.
        bisections: Evaluations after the doublings; fewer where one is within 1 % of p.
    """
    delta = weight.parameter - before
    codes = weight.codes(before.unsqueeze(0))

    def crossed(alphas: Sequence[float]) -> list[float]:
        factors = torch.tensor(alphas, dtype=delta.dtype, device=delta.device)
        candidates = before + factors.view(-1, *[1] * delta.dim()) * delta
        return (weight.codes(candidates) != codes).flatten(1).float().mean(1).tolist()

    plain = crossed([1.0])[0]
    if plain >= share:
        return Crossing(1.0, plain, plain, capped=False)
    alphas = _doublings(cap)
    shares = crossed(alphas)
    enough = next((i for i, found in enumerate(shares) if found >= share), None)
    if enough is None:
        weight.parameter.copy_(before + alphas[-1] * delta)
        return Crossing(alphas[-1], shares[-1], plain, capped=True)
    low, high, found = (1.0, *alphas)[enough], alphas[enough], shares[enough]
    for _ in range(bisections):
        if found - share <= share / 100:
            break
        middle = (low + high) / 2
        seen = crossed([middle])[0]
        if seen >= share:
            high, found = middle, seen
        else:
            low = middle
    weight.parameter.copy_(before + high * delta)
    return Crossing(high, found, plain, capped=False)


def _doublings(cap: float) -> list[float]:
    """2, 4, 8, ... and the cap itself."""
    powers, power = [], 2.0
    while power < cap:
        powers.append(power)
        power *= 2
    return [*powers, float(cap)]


@torch.no_grad()
def changed_share(weights: Sequence[IntegerWeight], before: Sequence[Tensor]) -> float:
    """Share of all integers that differ from those of the values `before`."""
    changed = total = 0
    for weight, old in zip(weights, before, strict=True):
        pair = torch.stack((old, weight.parameter.detach()))
        first, second = weight.codes(pair)
        changed += int((first != second).sum())
        total += old.numel()
    return changed / max(1, total)
