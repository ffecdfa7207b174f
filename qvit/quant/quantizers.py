"""Fake quantization under any scheme, in simulation: dynamic, static or learned, symmetric or affine.

The default recipe needs only the reference's dynamic symmetric rows; this is what static and learned ranges, and
so the recipes of publications, are built from. Rounding is the reference's, gradients are straight-through,
which makes the gradient of a learned scale that of LSQ (Esser et al. 2020, eq. 3), and that of a learned zero
point LSQ+'s (Bhalgat et al. 2020).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from qvit.quant.observers import fake_quantize, observe, scale_and_zero_point, slowed
from qvit.quant.schemes import Granularity, Mode, Scheme


def grouped(x: Tensor, scheme: Scheme) -> tuple[Tensor, tuple[int, ...]]:
    """x, split so that the values sharing a scale span whole axes, and those axes.

    Activations are [..., K] (heads [B, H, T, d]); CHANNEL keeps the last axis, GROUP splits it. Dynamic scales
    belong to one row; static ones are shared by all rows.
    """
    if scheme.granularity is Granularity.GROUP:
        x = x.unflatten(-1, (-1, scheme.group))
    axes = range(x.dim())
    if scheme.granularity is Granularity.TENSOR:
        return x, tuple(axes)
    if scheme.mode is Mode.DYNAMIC:
        return x, (x.dim() - 1,)
    kept = {Granularity.CHANNEL: -1, Granularity.GROUP: -2, Granularity.HEAD: -3}
    keep = kept[scheme.granularity] % x.dim()
    return x, tuple(a for a in axes if a != keep)


class Quantizer(nn.Module):
    """Fake-quantizes activations under one scheme.

    Dynamic schemes work at once. Static and learned ones take their range from `calibrate`, and refuse to run
    before it; a learned one then has `scale` and `zero_point` as parameters.
    """

    def __init__(self, scheme: Scheme, *, observer: str = "minmax") -> None:
        super().__init__()
        self.scheme = scheme
        self.observer = observer
        learned = scheme.mode is Mode.LEARNED
        self.scale = nn.Parameter(torch.empty(0), requires_grad=learned)
        self.zero_point = nn.Parameter(
            torch.empty(0), requires_grad=learned and not scheme.symmetric
        )

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set scale and zero point from a sample. Raises ValueError for a dynamic scheme, which has none."""
        if self.scheme.mode is Mode.DYNAMIC:
            raise ValueError(
                "a dynamic scheme takes its range from each tensor; there is nothing to calibrate"
            )
        values, axes = grouped(x, self.scheme)
        low, high = observe(values, axes, self.scheme, self.observer)
        scale, zero_point = scale_and_zero_point(low, high, self.scheme)
        self.scale.data = scale
        self.zero_point.data = zero_point

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: dict[str, Any], prefix: str, *rest: Any
    ) -> None:
        """Take the shape of a calibrated range from the state, which an uncalibrated quantizer cannot know."""
        for name, parameter in self.named_parameters():
            if prefix + name in state_dict:
                parameter.data = torch.empty_like(state_dict[prefix + name])
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """x on the grid of its scheme, same shape, with straight-through gradients."""
        values, axes = grouped(x, self.scheme)
        if self.scheme.mode is Mode.DYNAMIC:
            low, high = values.amin(axes, keepdim=True), values.amax(axes, keepdim=True)
            scale, zero_point = scale_and_zero_point(low, high, self.scheme)
        elif self.scale.numel() == 0:
            raise RuntimeError(
                f"this {self.scheme.mode} quantizer has no range yet: call calibrate() with a sample first"
            )
        else:
            scale, zero_point = self._learnable(values)
        return fake_quantize(values, scale, zero_point, self.scheme).view_as(x)

    def _learnable(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point with LSQ's gradient factor 1 / sqrt(values a scale * largest code)."""
        shared = values.numel() / max(self.scale.numel(), 1)
        factor = 1 / math.sqrt(shared * self.scheme.codes[1])
        return slowed(self.scale, factor), slowed(self.zero_point, factor)
