"""Which values reach every Linear, channel by channel, and how far two sets of images agree on that.

A quantizer that is set by synthetic images cuts off what real images exceed, and wastes codes on what they never
reach. The overlap shows both at once: 1 where the ranges are the same, 0 where they do not touch.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qvit.models.floating import Float
from qvit.models.vit import Attention, Mlp, ViT

Ranges = Mapping[str, tuple[Tensor, Tensor]]


class RangeRecorder(Float):
    """The float execution, noting the least and greatest input of every Linear behind the patch embedding.

    `ranges` maps a Linear's name to (low, high), fp32 [in_features] each, over every image seen so far.
    """

    def __init__(self, model: ViT) -> None:
        self.ranges: dict[str, tuple[Tensor, Tensor]] = {}
        self._names = {id(module): name for name, module in model.named_modules()}

    def qkv(self, h: Tensor, attn: Attention) -> tuple[Tensor, Tensor, Tensor]:
        """See Execution."""
        self._note(h, attn.qkv)
        return super().qkv(h, attn)

    def residual(self, x: Tensor, h: Tensor, dense: Any) -> Tensor:
        """See Execution."""
        self._note(h, dense)
        return super().residual(x, h, dense)

    def gelu(self, h: Tensor, mlp: Mlp) -> Tensor:
        """See Execution."""
        self._note(h, mlp.fc1)
        return super().gelu(h, mlp)

    def logits(self, h: Tensor, dense: Any) -> Tensor:
        """See Execution."""
        self._note(h, dense)
        return super().logits(h, dense)

    def _note(self, values: Tensor, dense: nn.Module) -> None:
        low, high = values.detach().float().flatten(0, -2).aminmax(dim=0)
        name = self._names[id(dense)]
        if name in self.ranges:
            low = torch.minimum(low, self.ranges[name][0])
            high = torch.maximum(high, self.ranges[name][1])
        self.ranges[name] = low, high


def measure_overlap(first: Ranges, second: Ranges) -> dict[str, float]:
    """For every Linear, the mean over input channels of the length that two ranges share over the length that they
    cover together, |A and B| / |A or B|, from 0 to 1; a channel constant in both counts 1 if it is the same constant.
    """
    found = {}
    for name, (low, high) in first.items():
        other_low, other_high = second[name]
        shared = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp_min(0)
        # Where they do not touch, the gap between them is no part of the union.
        covered = (high - low) + (other_high - other_low) - shared
        same = ((low == other_low) & (high == other_high)).float()
        found[name] = (
            torch.where(covered > 0, shared / covered.clamp_min(1e-30), same).mean().item()
        )
    return found
