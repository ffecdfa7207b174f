"""Gradient inundation: a step that is long enough to change integers (AIT, Choi et al., CVPR 2022, section 4).

Late in training the steps of a low-bit network are shorter than the way to the next rounding threshold: weights move,
and none of the integers does. Here the step of every weight tensor is multiplied by the least factor, found each time,
with which at least a share p of its integers changes. A scale that is trained moves in the same step and changes
integers, too: those before are taken before anything moves, those after count under the new scale. The search costs 13
to 16 % of a step of the demo ViT at 16 images (0.27 s of processor time), whatever p between 1e-4 and 1e-2, and less
the more images a step has.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qvit.models.student import IntegerWeight

# Candidates that are tried together: up to a factor of 256 in one pass, which is as far as most steps have to go.
_STACK = 8


@dataclass(frozen=True, slots=True)
class Crossing:
    """What one step did to the integers of one weight.

    Attributes:
        alpha: The factor of its step.
        share: Of its integers that changed.
        plain: Of them that would have changed without the factor, by step and scale.
        capped: Whether the largest factor was not enough.
    """

    alpha: float
    share: float
    plain: float
    capped: bool


@torch.no_grad()
def take_codes(weights: Sequence[IntegerWeight]) -> list[Tensor]:
    """The integers of each weight as it is: int8, of its shape."""
    # A copy, and not the old values: their integers are others as soon as a scale has moved.
    return [w.codes(w.parameter.detach().unsqueeze(0)).squeeze(0).to(torch.int8) for w in weights]


@torch.no_grad()
def inundate(
    weight: IntegerWeight,
    codes: Tensor,
    step: Tensor,
    share: float,
    *,
    cap: float,
    bisections: int,
) -> Crossing:
    """Take a step that changes enough integers, in place.

    The factor is found by doubling and bisection: powers of two are tried a stack of candidates at a time, then the
    last doubling is halved in turn. The published search ends at its last midpoint, which may change fewer than p;
    this one keeps the least factor that was seen to change enough.

    Args:
        weight: Its parameter holds the values before the step; its scale, if that is trained, has moved already.
        codes: Its integers before the step, from `take_codes`.
        step: What an ordinary step would add to them, same shape. Not a difference of values: late in training a step
            is below the last bit of its weight, and a difference would be nothing.
        share: p, the least share of integers to change.
        cap: Largest factor.
        bisections: Evaluations after the doublings; fewer where one is within 1 % of p.
    """
    before = weight.parameter.detach().clone()

    def crossed(alphas: Sequence[float]) -> list[float]:
        factors = torch.tensor(alphas, dtype=step.dtype, device=step.device)
        candidates = before + factors.view(-1, *[1] * step.dim()) * step
        return (weight.codes(candidates) != codes).flatten(1).float().mean(1).tolist()

    plain = crossed([1.0])[0]
    if plain >= share:
        weight.parameter.add_(step)
        return Crossing(1.0, plain, plain, capped=False)
    low, high, found = 1.0, 1.0, plain
    for alphas in _doublings(cap):
        shares = crossed(alphas)
        enough = next((i for i, seen in enumerate(shares) if seen >= share), len(alphas) - 1)
        low, high, found = (high, *alphas)[enough], alphas[enough], shares[enough]
        if found >= share:
            break
    if found < share:
        weight.parameter.add_(high * step)
        return Crossing(high, found, plain, capped=True)
    for _ in range(bisections):
        if found - share <= share / 100:
            break
        middle = (low + high) / 2
        seen = crossed([middle])[0]
        if seen >= share:
            high, found = middle, seen
        else:
            low = middle
    weight.parameter.add_(high * step)
    return Crossing(high, found, plain, capped=False)


def _doublings(cap: float) -> Iterator[list[float]]:
    """2, 4, 8, ... and the cap itself, in stacks."""
    factors, power = [], 2.0
    while power < cap:
        factors.append(power)
        power *= 2
    factors.append(float(cap))
    for start in range(0, len(factors), _STACK):
        yield factors[start : start + _STACK]


@torch.no_grad()
def changed_share(weights: Sequence[IntegerWeight], codes: Sequence[Tensor]) -> float:
    """Share of all integers that differ from what they were, `codes` from `take_codes`."""
    pairs = list(zip(take_codes(weights), codes, strict=True))
    changed = sum(int((new != old).sum()) for new, old in pairs)
    return changed / max(1, sum(old.numel() for _, old in pairs))
