"""Losses as the curvature has them, at the level that is measured.

The curvature follows straight lines from the float model: of errors in early layers, whose way to the logits is long,
it says half to two thirds of what they do (patch embedding, qkv of the first blocks of a ViT-Tiny at three bits), of
some late ones twice as much. So each choice's losses are multiplied with what they were measured to be, in a model of
eight bits in which it alone has few. Between widths they stay the curvature's: what one tensor does at five bits or
more drowns in what ties do elsewhere. And it is the squared error of the logits that is measured, not KL: on leaves, of
which the float model is unsure, KL is three times what it is on photographs, and the squared error is the same.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from qvit.recipe import MAX_BITS, MIN_BITS

MEASURED = 3  # bits: fewer make errors larger than models have them, more leave them to ties
_FARTHEST = (
    4.0  # from the median: what is measured farther off is noise, as of what no logit hears of
)


def lift(losses: Tensor, error: Callable[[Tensor], float]) -> Tensor:
    """Losses fp64 [choices, 7] of 2 to 8 bits, positive, those of each choice times a factor; the median of the factors
    is 1, so that the whole stays in nats.

    error: Of an allocation int64 [choices], the squared error of the logits.
    """
    most = torch.full((len(losses),), MAX_BITS, dtype=torch.int64)
    least = error(most)
    found = torch.empty(len(losses), dtype=torch.float64)
    for choice in range(len(losses)):
        alone = most.clone()
        alone[choice] = MEASURED
        found[choice] = error(alone) - least
    ratios = found / losses[:, MEASURED - MIN_BITS]
    factors = (ratios / ratios.median()).clamp(1 / _FARTHEST, _FARTHEST)
    return losses * factors.unsqueeze(1)
