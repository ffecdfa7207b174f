"""Patch-similarity entropy (PSAQ-ViT, Li et al., ECCV 2022, section 3.2), without the tensors of its definition."""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Places further away than so many bandwidths see less than exp(-24.5) = 2e-11 of a kernel's height.
_REACH = 7.0
# Similarities evaluated together: 600 kB in float32, which stay in a core's cache from one pass to the next.
_TOGETHER = 150_000


def patch_similarity_entropy(
    features: Tensor, *, bandwidth: float = 0.01, points: int = 10
) -> Tensor:
    """Differential entropy of the similarities of an image's patches, averaged over the batch, in nats.

    With G = cosine similarities of all pairs of the image's P patches, and `points` places x_k, equally spaced
    between the batch's least and largest similarity (not differentiated):

        p_k = 1/P^2 sum_i N(x_k; G_i, bandwidth^2)          H = -integral (p + 1e-4) log(p + 1e-4) dx

    by the trapezoidal rule. The places couple the images of a batch, as published. The published form evaluates
    points x P^2 kernels an image and keeps them for the backward pass, together with P^2 products of features. But
    places are further apart than a bandwidth, so nearly all kernels are 0: here each similarity is seen by the
    places around it alone, a few images at a time, and again in the backward pass, which needs only the features.

    Args:
        features: fp32 [B, P, d], one vector a patch.
        bandwidth: Of the Gaussian kernel.
        points: Places where the density is evaluated, at least 2.

    Returns:
        A scalar, differentiable with respect to the features; 0 where all similarities are equal.
    """
    unit = F.normalize(features, dim=-1, eps=1e-8)
    low, high = _extremes(unit.detach())
    places = torch.linspace(low, high, points, dtype=unit.dtype, device=unit.device)
    density = _Density.apply(unit, low, (high - low) / (points - 1), points, bandwidth)
    assert isinstance(density, Tensor)
    lifted = density + 1e-4
    return torch.trapezoid(-lifted * lifted.log(), places, dim=-1).mean()


def _extremes(unit: Tensor) -> tuple[float, float]:
    """The least and the largest similarity of the batch."""
    found = [torch.stack(s.aminmax()) for s in map(_similarities, _chunks(unit))]
    low, high = torch.stack(found).unbind(-1)
    return float(low.min()), float(high.max())  # torch's, which pass NaN on wherever it is


def _chunks(x: Tensor) -> tuple[Tensor, ...]:
    """A few images at a time of [B, P, ...]."""
    return x.split(max(1, _TOGETHER // x.shape[1] ** 2))


def _similarities(unit: Tensor) -> Tensor:
    return unit @ unit.transpose(-1, -2)


class _Density(torch.autograd.Function):
    """p_k: patches of length 1, [B, P, d], to the density at `points` places from `low`, `step` apart, [B, points]."""

    @staticmethod
    def forward(
        ctx: Any, unit: Tensor, low: float, step: float, points: int, bandwidth: float
    ) -> Tensor:
        ctx.save_for_backward(unit)
        ctx.grid = low, step, points, bandwidth
        sums = []
        for part in _chunks(unit):
            rows = part.shape[1]
            # a row of P similarities at a time: long fp32 sums would lose the last digits
            found = unit.new_zeros(len(part) * rows, points)
            for place, kernel, _ in _kernels(part, *ctx.grid):
                found.scatter_add_(1, place.view(len(found), rows), kernel.view(len(found), rows))
            sums.append(found.view(-1, rows, points).sum(1))
        return torch.cat(sums).mul_(_height(bandwidth) / unit.shape[1] ** 2)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """d p_k / d G_i = N(x_k; G_i, h^2) (x_k - G_i) / (h^2 P^2), and G = u u^T is symmetric."""
        (unit,), (_, step, _, bandwidth) = ctx.saved_tensors, ctx.grid
        parts = []
        for part, grad in zip(
            _chunks(unit), grads[0].split(_chunks(unit)[0].shape[0]), strict=True
        ):
            total = unit.new_zeros(len(part), part.shape[1], part.shape[1])
            for place, kernel, distance in _kernels(part, *ctx.grid):
                weight = grad.gather(1, place.view(len(part), -1)).view_as(kernel)
                total.add_(kernel.mul_(distance).mul_(weight))
            parts.append(total @ part)
        factor = 2 * step * _height(bandwidth) / (bandwidth**2 * unit.shape[1] ** 2)
        return torch.cat(parts).mul_(factor), None, None, None, None


def _height(bandwidth: float) -> float:
    return 1 / (bandwidth * math.sqrt(2 * math.pi))


def _kernels(
    unit: Tensor, low: float, step: float, points: int, bandwidth: float
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Every similarity with the places around it: (number of the place, kernel, distance in steps), [B, P, P] each.

    kernel = exp(-(x - G)^2 / 2 h^2), and 0 for a place beyond the ends.
    """
    # All patches alike: the integral is over nothing. NaN: the places pass it on.
    if not step > 0:
        return
    position = _similarities(unit).sub_(low).div_(step)
    nearest = position.round()
    reach = min(points - 1, max(0, math.ceil(_REACH * bandwidth / step - 0.5)))
    for offset in range(-reach, reach + 1):
        place = nearest + offset
        distance = place - position
        kernel = distance.square().mul_(-0.5 * (step / bandwidth) ** 2).exp_()
        if offset:
            kernel.masked_fill_((place < 0) | (place > points - 1), 0)
        yield place.clamp_(0, points - 1).long(), kernel, distance
