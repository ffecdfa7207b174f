"""Bit-widths as parameters: real numbers, rounded where they are used, with a gradient (Q-ViT, Li et al. 2022).

A width n is rounded and the gradient passes straight through. Of a weight, the codes are bounded by

    v_hat = s round(min(max(v / s, Qn(n)), Qp(n)))       Qp = 2^(n-1) - 1, Qn = -2^(n-1); at 8 bits Qn = -Qp

and s, one for every width, is learned beside n. So n hears of what is clipped, and of nothing else:

    d v_hat / dn = s dQp/dn = s r above, -s r below, 0 between       r = d 2^(n-1) / dn = 2^(n-1) ln 2

Activations have a scale that comes from the values themselves: s(n) = amax / S(n), S = 2^(n-1) + 1/4 (127 at 8 bits),
and dS/dn = r. Next to nothing is clipped there, and n acts by the step, ds/dn = -s r / S. With q the code, u = v / s,
and rounding straight through,

    d v_hat / dn = ds/dn (q - u)                         = -(r / S) (v_hat - v)        where nothing is clipped
    d v_hat / dn = ds/dn q + s dQ/dn                     = s r (sign(u) - q / S)       where q is the bound Q

With r / S near ln 2 the first says that a bit more halves the error. The numerators of a softmax, codes 0 to 2^n - 1,
are never clipped; their r is 2^n ln 2, and 0 at 8 bits, whose codes end at 127 as those of 7 do.
"""

import math
from typing import Any

import torch
from torch import Tensor

from qvit.quant.schemes import Scheme
from qvit_kernels import reference
from qvit_kernels.reference import Quantized, code_range, round_half_even, steps_of

_LN2 = math.log(2)
_ROUNDING = 1 + 1e-6  # of an extreme that lies on its bound


def code_bounds(bits: Tensor) -> tuple[Tensor, Tensor]:
    """`reference.code_range` of widths, whole numbers in a float tensor, differentiable."""
    half = torch.exp2(bits - 1)
    return torch.where(bits < 8, -half, 1 - half), half - 1


def weight_codes(weight: Tensor, steps: Tensor, bits: Tensor, *, rows: bool = True) -> Tensor:
    """Codes [N, K] of a weight on a grid, whole-numbered floats, differentiable by all three.

    weight: [N, K]; steps: [N, G], of its groups of columns, none zero; bits: whole numbers [slices], of equal parts of
    its rows, or of its columns, as `rows` says.
    """
    if rows:
        bits = bits.repeat_interleave(len(weight) // len(bits)).unsqueeze(-1)
    else:  # groups as fine as no slice and no group ends within one
        count = math.lcm(len(bits), steps.shape[-1])
        bits = bits.repeat_interleave(count // len(bits))
        steps = steps.repeat_interleave(count // steps.shape[-1], -1)
    low, high = (bound.unsqueeze(-1) for bound in code_bounds(bits))
    exact = weight.unflatten(-1, (steps.shape[-1], -1)) * steps.unsqueeze(-1).reciprocal()
    return round_half_even(torch.minimum(torch.maximum(exact, low), high)).flatten(-2)


def quantize_input(x: Tensor, bits: Tensor, scheme: Scheme) -> Tensor:
    """The input of a Linear on its grid: x [..., K], bits [], the scheme's own, whose gradient this is for."""
    return _OnInputGrid.apply(x, bits, scheme)  # pyright: ignore[reportReturnType]


def quantize_heads(x: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Q, K or V [B, H, T, d] on its grid, and the scales, [B, H, T, 1], which count as constants. bits: []."""
    return _OnHeadGrid.apply(x, bits)  # pyright: ignore[reportReturnType]


def quantize_shares(shares: Tensor, on_grid: Tensor, bits: Tensor) -> Tensor:
    """Shares of attention, which have their values on the grid already, with a gradient of bits []."""
    return _OnSoftmaxGrid.apply(shares, bits, on_grid)  # pyright: ignore[reportReturnType]


class _LearnedGrid(torch.autograd.Function):
    """Of values and bits, first: values pass their gradient on, bits have it by the slope d v_hat / dn that is kept."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        rest = [None] * (len(ctx.needs_input_grad) - 2)
        return grads[0], (grads[0] * slope).sum(), *rest


class _OnInputGrid(_LearnedGrid):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: Tensor, scheme: Scheme) -> Tensor:
        found = reference.quantize_rows(x, scheme.bits, scheme.group, prefix=scheme.prefix)
        values = found.values()
        slope = _slope(x, found, values, scheme.bits)
        if scheme.prefix:  # has eight bits, whatever the others have
            slope[..., : scheme.prefix, :] = 0
        ctx.save_for_backward(slope)
        return values


class _OnHeadGrid(_LearnedGrid):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
        width = int(bits)
        found = reference.quantize_heads(x, width)
        values = found.values()
        ctx.save_for_backward(_slope(x, found, values, width))
        ctx.mark_non_differentiable(found.scale)
        return values, found.scale


class _OnSoftmaxGrid(_LearnedGrid):
    @staticmethod
    def forward(ctx: Any, shares: Tensor, bits: Tensor, on_grid: Tensor) -> Tensor:
        width = int(bits)
        rise = 2**width * _LN2 if width < 8 else 0.0
        ctx.save_for_backward((shares - on_grid) * (rise / reference.softmax_qmax_of(width)))
        return on_grid.clone()


def _slope(x: Tensor, found: Quantized, values: Tensor, bits: int) -> Tensor:
    """d v_hat / dn of activations x with a scale of their own, see the page above."""
    rise, steps = 2 ** (bits - 1) * _LN2, steps_of(bits)
    slope = (x - values) * (rise / steps)
    low, high = code_range(bits)
    groups = found.scale.shape[-1]
    scale = found.scale.unsqueeze(-1)
    exact = x.unflatten(-1, (groups, -1)) / scale
    codes = found.codes.unflatten(-1, (groups, -1))
    clipped = (exact < low * _ROUNDING) | (exact > high * _ROUNDING)
    cut = scale * rise * (exact.sign() - codes / steps)
    return torch.where(clipped, cut, slope.unflatten(-1, (groups, -1))).flatten(-2)
