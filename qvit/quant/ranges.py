"""Ranges: the steps of symmetric grids for a tensor that is known in advance."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qvit.quant.schemes import Scheme
from qvit.quant.slices import (
    Limits,
    code_limits,
    join_slices,
    multiplier_limits,
    schemes_alone,
    split_slices,
)
from qvit_kernels import reference

# The search goes down from the maximum in steps of 1 % until no row has gained for a while: a heavy-tailed 2-bit
# row may have its optimum at a tenth of the maximum, an 8-bit one never far from it.
_STEPS = 96
_PATIENCE = 15

# Weights searched at a time: 256 KiB in fp32, which a core's cache holds with the temporaries.
_BLOCK = 64 * 1024


# Trials of the scale that the integer multipliers of a row's groups share.
_SHARED_SCALES = 6


class Grid(NamedTuple):
    """The steps of a weight: scale fp32 [N]; multiplier fp32 [N, G], whole numbers, none zero, or None."""

    scale: Tensor
    multiplier: Tensor | None

    def steps(self) -> Tensor:
        """The step of every group of columns, [N, G]; G is 1 without groups."""
        steps = self.scale.unsqueeze(-1)
        return steps if self.multiplier is None else steps * self.multiplier


def weight_grid(weight: Tensor, scheme: Scheme, method: str = "mse", stride: int = 1) -> Grid:
    """Scale of each row and, with groups, the multiplier of each group of its columns. weight: fp32 [N, K].

    A group's best step is rounded to a multiple of the row's scale, up to the largest multiplier that keeps its
    products with codes in 8 bits: by squared error ("mse"), or up ("minmax").

    stride: Of "mse", which then tries one step in so many: with 4 the squared errors of a ViT-Tiny's weights are up to
    1 % larger at 2 to 5 bits and up to 2 % at more, in two fifths of the time.
    """
    if scheme.rows:
        parts = zip(split_slices(weight, scheme), schemes_alone(scheme), strict=True)
        groups = weight.shape[-1] // scheme.group if scheme.group else 0
        grids = [weight_grid(part, alone, method, stride) for part, alone in parts]
        return _join_rows([_with_multipliers(grid, groups) for grid in grids])
    found = [
        group_steps(part, bits, scheme.group, method, stride)
        for part, bits in zip(split_slices(weight, scheme), scheme.slices, strict=True)
    ]
    steps = join_slices(found, scheme)
    if not scheme.group:
        return Grid(steps.squeeze(-1), None)
    rows = max(_BLOCK // weight.shape[-1], 1)
    grouped = weight.unflatten(-1, (-1, scheme.group))
    trials = -(-_SHARED_SCALES // stride) if method == "mse" else 0
    blocks = zip(grouped.split(rows), steps.split(rows), strict=True)
    return _join_rows([_share_scale(values, part, scheme, trials) for values, part in blocks])


def _with_multipliers(grid: Grid, groups: int) -> Grid:
    """Of one, beside rows that have some."""
    if not groups or grid.multiplier is not None:
        return grid
    return Grid(grid.scale, grid.scale.new_ones(len(grid.scale), groups))


def _join_rows(parts: Sequence[Grid]) -> Grid:
    scales, multipliers = zip(*parts, strict=True)
    return Grid(torch.cat(scales), None if multipliers[0] is None else torch.cat(multipliers))


def _share_scale(grouped: Tensor, steps: Tensor, scheme: Scheme, trials: int) -> Grid:
    """Of rows whose groups have best steps [rows, G]; grouped: [rows, G, values].

    trials: Of scales; 0: multipliers are rounded up, with the first one.
    """
    limits, limit = code_limits(scheme, steps), multiplier_limits(scheme, steps)
    highest = int(limit.max())
    # no group needs more than its limit of a scale of `largest / highest`
    largest = (steps.abs() * (highest / limit)).amax(-1, keepdim=True)
    best_scale, best = largest / highest, torch.ones_like(steps)
    least = torch.full_like(largest, torch.inf)
    for top in range(highest, max(highest - max(trials, 1), 0), -1):
        scale = largest / top
        ratio = steps.abs() / scale
        above = _with_sign(ratio.ceil(), steps, limit)
        error = _squared_error(grouped, above * scale, limits)
        chosen = above
        if trials:
            below = _with_sign(ratio.floor(), steps, limit)
            error_below = _squared_error(grouped, below * scale, limits)
            chosen = torch.where(error_below < error, below, above)
            error = torch.minimum(error, error_below)
        total = error.sum(-1, keepdim=True)
        better = total < least
        best = torch.where(better, chosen, best)
        best_scale = torch.where(better, scale, best_scale)
        least = torch.where(better, total, least)
    return Grid(best_scale.squeeze(-1), best)


def _with_sign(ratio: Tensor, steps: Tensor, limit: Tensor) -> Tensor:
    return torch.copysign(torch.minimum(ratio.clamp_min(1), limit), steps)


def steps_that_reach(bits: int) -> float:
    """Steps from zero to a largest magnitude that is rounded and not cut, at whichever end it lies.

    Below 8 bits half a step more than the largest code, less a little: at half a step every extreme would be a tie.
    """
    return 127.0 if bits == 8 else 2 ** (bits - 1) - 127 / 256


def group_steps(
    weight: Tensor, bits: int, group: int = 0, method: str = "mse", stride: int = 1
) -> Tensor:
    """Step of each row, or of each `group` columns of a row. weight: fp32 [N, K] -> fp32 [N, G], none zero.

    "minmax" reaches the largest weight; "mse" shrinks the range to where the squared rounding and clipping
    error is least, over a grid of fractions of the maximum. Below 8 bits there is one code more below zero than
    above it, and "mse" also chooses the sign of the step, which says at which end of the weights it lies. stride: See
    `weight_grid`.
    """
    grouped = weight.unflatten(-1, (-1, group or weight.shape[-1]))
    if method == "minmax":
        return reference.scale_of(grouped.abs().amax(-1), steps_that_reach(bits))
    rows = max(_BLOCK // weight.shape[-1], 1)
    return torch.cat([_least_squares(block, bits, stride) for block in grouped.split(rows)])


def _least_squares(grouped: Tensor, bits: int, stride: int) -> Tensor:
    """grouped: [rows, G, values that share a step] -> [rows, G]."""
    low, high = reference.code_range(bits)
    largest = reference.scale_of(grouped.abs().amax(-1), -low)
    best, least = largest, torch.full_like(largest, torch.inf)
    last_gain = 0
    for i in range(0, _STEPS, stride):
        fraction = 1.0 - 0.01 * i
        for sign in (1.0,) if -low == high else (1.0, -1.0):
            scale = largest * (fraction * sign)
            error = _squared_error(grouped, scale, (low, high))
            better = error < least
            last_gain = i if better.any() else last_gain
            best = torch.where(better, scale, best)
            least = torch.where(better, error, least)
        if i - last_gain >= _PATIENCE:
            break
    return best


def _squared_error(grouped: Tensor, scale: Tensor, limits: Limits) -> Tensor:
    step = scale.unsqueeze(-1)
    codes = reference.quantize(grouped, step, *limits)
    return (codes * step - grouped).square().sum(-1)
