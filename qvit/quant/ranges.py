"""Ranges: the step of a symmetric grid for a tensor that is known in advance."""

import torch
from torch import Tensor

from qvit_kernels import reference

# The search goes down from the maximum in steps of 1 % until no row has gained for a while: a heavy-tailed 2-bit
# row may have its optimum at a tenth of the maximum, an 8-bit one never far from it.
_STEPS = 96
_PATIENCE = 15

# Weights searched at a time: 256 KiB in fp32, which a core's cache holds with the temporaries.
_BLOCK = 64 * 1024


def weight_scale(weight: Tensor, bits: int, group: int = 0, method: str = "mse") -> Tensor:
    """Step of each row, or of each `group` columns of a row. weight: fp32 [N, K] -> fp32 [N, G], none zero.

    "minmax" reaches the largest weight; "mse" shrinks the range to where the squared rounding and clipping
    error is least, over a grid of fractions of the maximum. Below 8 bits there is one code more below zero than
    above it, and "mse" also chooses the sign of the step, which says at which end of the weights it lies.
    """
    grouped = weight.unflatten(-1, (-1, group or weight.shape[-1]))
    if method == "minmax":
        return reference.scale_of(grouped.abs().amax(-1), reference.steps_of(bits))
    rows = max(_BLOCK // weight.shape[-1], 1)
    return torch.cat([_least_squares(block, bits) for block in grouped.split(rows)])


def _least_squares(grouped: Tensor, bits: int) -> Tensor:
    """grouped: [rows, G, values that share a step] -> [rows, G]."""
    largest = reference.scale_of(grouped.abs().amax(-1), reference.steps_of(bits))
    low, high = reference.code_range(bits)
    best, least = largest, torch.full_like(largest, torch.inf)
    last_gain = 0
    for i in range(_STEPS):
        fraction = 1.0 - 0.01 * i
        for sign in (1.0,) if -low == high else (1.0, -1.0):
            scale = largest * (fraction * sign)
            error = _squared_error(grouped, scale, bits)
            better = error < least
            last_gain = i if better.any() else last_gain
            best = torch.where(better, scale, best)
            least = torch.where(better, error, least)
        if i - last_gain >= _PATIENCE:
            break
    return best


def _squared_error(grouped: Tensor, scale: Tensor, bits: int) -> Tensor:
    step = scale.unsqueeze(-1)
    codes = reference.quantize(grouped, step, *reference.code_range(bits))
    return (codes * step - grouped).square().sum(-1)
