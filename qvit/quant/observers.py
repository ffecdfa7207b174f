"""Observers: the range that a static quantizer shall cover, from a sample of what it will see."""

import torch
from torch import Tensor

from qvit.quant.ranges import steps_that_reach
from qvit.quant.schemes import Scheme
from qvit_kernels import reference

OBSERVERS = ("minmax", "percentile", "mse")

# Both tails together lose one value in a thousand.
_TAIL = 0.0005
_FRACTIONS = torch.linspace(0.2, 1.0, 81)


def observe(
    values: Tensor, axes: tuple[int, ...], scheme: Scheme, observer: str = "minmax"
) -> tuple[Tensor, Tensor]:
    """Lower and upper end of the range over `axes`, which are kept with size 1.

    "minmax" covers everything, "percentile" leaves 0.05 % out at each end, "mse" shrinks min and max by the one
    fraction that makes the squared quantization error least. Raises ValueError for another name.
    """
    low, high = values.amin(axes, keepdim=True), values.amax(axes, keepdim=True)
    if observer == "minmax":
        return low, high
    if observer == "percentile":
        return _percentile(values, axes, _TAIL), _percentile(values, axes, 1 - _TAIL)
    if observer == "mse":
        return _least_squares(values, axes, scheme, low, high)
    raise ValueError(f"observer {observer!r}: expected one of {', '.join(OBSERVERS)}")


def _percentile(values: Tensor, axes: tuple[int, ...], fraction: float) -> Tensor:
    """The order statistic nearest to the fraction (torch.quantile stops at 2^24 values; kthvalue does not)."""
    kept = [d for d in range(values.dim()) if d not in {a % values.dim() for a in axes}]
    moved = values.permute(*kept, *[a % values.dim() for a in axes]).flatten(len(kept))
    rank = round(fraction * (moved.shape[-1] - 1)) + 1
    shape = [1 if d not in kept else values.shape[d] for d in range(values.dim())]
    return moved.kthvalue(rank, dim=-1).values.reshape(shape)


def _least_squares(
    values: Tensor, axes: tuple[int, ...], scheme: Scheme, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    best_low, best_high, least = low, high, torch.full_like(low, torch.inf)
    for fraction in _FRACTIONS.tolist():
        error = _squared_error(values, axes, scheme, low * fraction, high * fraction)
        better = error < least
        best_low = torch.where(better, low * fraction, best_low)
        best_high = torch.where(better, high * fraction, best_high)
        least = torch.where(better, error, least)
    return best_low, best_high


def _squared_error(
    values: Tensor, axes: tuple[int, ...], scheme: Scheme, low: Tensor, high: Tensor
) -> Tensor:
    scale, zero_point = scale_and_zero_point(low, high, scheme)
    return (
        (fake_quantize(values, scale, zero_point, scheme) - values).square().sum(axes, keepdim=True)
    )


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme) -> Tensor:
    """Quantize and dequantize: (rint(clamp(x / s + z, low, high)) - z) * s; scale, zero_point broadcast to x.

    The clamp comes first, as LSQ has it: torch 2.15 gives no gradient to what lies on a bound of a clamp, and after
    rounding that is every value with an extreme code, half of a 2-bit tensor.
    """
    zero_point = reference.round_half_even(zero_point)
    # Clamped as x / s, so that a zero point does not change which way a tie rounds.
    low, high = (end - zero_point for end in scheme.codes)
    return reference.round_half_even(torch.clamp(x / scale, low, high)) * scale


def slowed(parameter: Tensor, factor: Tensor | float) -> Tensor:
    """The value unchanged, its gradient times `factor`."""
    return parameter.detach() + (parameter - parameter.detach()) * factor


def scale_and_zero_point(low: Tensor, high: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """The grid that covers low..high (and zero); the zero point of a symmetric scheme is zero."""
    if scheme.symmetric:
        scale = reference.scale_of(
            torch.maximum(low.abs(), high.abs()), steps_that_reach(scheme.bits)
        )
        return scale, torch.zeros_like(scale)
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = reference.scale_of(high - low, scheme.codes[1])
    return scale, reference.round_half_even(-low / scale)
