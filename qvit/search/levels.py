"""Losses as the curvature has them, at the level that is measured.

The curvature follows straight lines from the float model: of errors in early layers, whose way to the logits is long,
it says half to two thirds of what they do (patch embedding, qkv of the first blocks of a ViT-Tiny at three bits), of
some others twice as much. So losses of few bits are measured, in a model of eight bits in which one choice alone has
fewer. What one tensor does at five bits or more drowns in what ties do elsewhere: there the curvature is taken as many
times as was measured at four. And it is the squared error of the logits that is measured, not KL: on leaves, of which
the float model is unsure, KL at four bits is two to three times what it is on photographs, and the squared error about
the same.

KL of a ViT-Tiny on 1000 photographs, seeds 0, 1, 2, of bits found by the curvature alone, by KL and by the squared
error measured at three bits, and as here: W4A4 0.105, 0.120, 0.113; 0.095, 0.098, 0.095; 0.089, 0.096, 0.094; 0.091,
0.088, 0.100; W3A3 0.306, 0.396, 0.282; 0.315, 0.318, 0.278; 0.295, 0.310, 0.280; 0.288, 0.278, 0.278; the last with
exchanges from a second place (descent.py) 0.091, 0.088, 0.094 and 0.283, 0.263, 0.256.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qvit.recipe import MAX_BITS, MIN_BITS

MEASURED = (2, 3, 4)  # bits
_USUAL = 3  # at which the sum of what is measured stands for the sum of losses
_FARTHEST = 4.0  # what is measured as many times too large or too small is noise, as where no logit hears of a choice


def lift(losses: Tensor, error: Callable[[Tensor], float]) -> Tensor:
    """Losses fp64 [choices, 7] of 2 to 8 bits, positive, times how much more is measured of each choice than they say,
    beside how much more is measured of all at three bits.

    error: Of an allocation int64 [choices], the squared error of the logits.
    """
    found, least = measure_alone(error, len(losses), MEASURED)
    found = found - least
    told = losses[:, [bits - MIN_BITS for bits in MEASURED]]
    usual = MEASURED.index(_USUAL)
    level = found[:, usual].clamp(min=0).sum() / told[:, usual].sum()
    if level > 0 and found.isfinite().all():  # else nothing is heard of
        factors = (found / told / level).clamp(1 / _FARTHEST, _FARTHEST)
        rest = factors[:, -1:].expand(-1, losses.shape[1] - len(MEASURED))
        losses = losses * torch.cat([factors, rest], 1)
    return losses.flip(1).cummax(1).values.flip(1)  # a bit more costs nothing more


def measure_alone(
    measure: Callable[[Tensor], float], count: int, widths: Sequence[int]
) -> tuple[Tensor, float]:
    """What `measure` says of a model of eight bits in which one of `count` choices alone has fewer, fp64
    [choices, widths], and of the model of eight bits itself.
    """
    most = torch.full((count,), MAX_BITS, dtype=torch.int64)
    least = measure(most)
    found = torch.empty(count, len(widths), dtype=torch.float64)
    for choice in range(count):
        for place, bits in enumerate(widths):
            alone = most.clone()
            alone[choice] = bits
            found[choice, place] = measure(alone)
    return found, least
