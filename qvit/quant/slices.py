"""Slices: equal parts of a weight, one an attention head, that have bits of their own.

Those of qkv are rows, what computes a head's queries, keys or values: every row has a scale anyway, so that a slice is
quantized and stored as if it were alone. Those of proj are columns, what a head's output is multiplied with: a row's
scale is that of all heads, and each group of columns takes an integer multiple of it, larger where codes are fewer.
Either way codes times multipliers are int8, and one product computes all slices.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from qvit.quant.schemes import Granularity, Scheme
from qvit.recipe import MAX_GROUPED_BITS
from qvit_kernels.reference import code_range, largest_multiplier, quantize

Limits = tuple[int | Tensor, int | Tensor]


def split_slices(x: Tensor, scheme: Scheme) -> tuple[Tensor, ...]:
    """The slices of a weight [N, K], or of what its groups have, [N, G]; the whole where all have the same bits."""
    return x.chunk(len(scheme.slices), _axis(scheme))


def join_slices(parts: Sequence[Tensor], scheme: Scheme) -> Tensor:
    """Inverse of `split_slices`."""
    return torch.cat(list(parts), _axis(scheme))


def schemes_alone(scheme: Scheme) -> list[Scheme]:
    """Of slices of rows, as weights of their own. Groups are for those whose codes leave their multipliers room."""
    return [
        replace(scheme, bits=bits, rows=())
        if bits <= MAX_GROUPED_BITS
        else replace(scheme, bits=bits, rows=(), group=0, granularity=Granularity.CHANNEL)
        for bits in scheme.rows
    ]


def multiplier_bits(scheme: Scheme) -> tuple[int, ...]:
    """Bits of the multipliers of each slice of a grouped weight, sign included: the more the fewer its codes have. 0:
    slices of rows without groups, whose multipliers are one.
    """
    return tuple(
        largest_multiplier(bits).bit_length() + 1 if _has_groups(bits, scheme) else 0
        for bits in scheme.slices
    )


def code_limits(scheme: Scheme, groups: Tensor) -> Limits:
    """Smallest and largest code of a weight whose groups have something [N, G]: numbers, or tensors that broadcast to
    its weights by groups, [..., N, G, K / G], and are on the device of `groups`.
    """
    low, high = (_by_slice(lambda bits, i=i: code_range(bits)[i], scheme, groups) for i in (0, 1))
    return low, high


def quantize_weight(weight: Tensor, steps: Tensor, scheme: Scheme) -> Tensor:
    """Codes [..., N, K] of weights on the grid of these steps of their groups, [N, G]: whole-numbered floats,
    differentiable.
    """
    grouped = weight.unflatten(-1, (steps.shape[-1], -1))
    return quantize(grouped, steps.unsqueeze(-1), *code_limits(scheme, steps)).flatten(-2)


def multiplier_limits(scheme: Scheme, groups: Tensor) -> Tensor:
    """Largest multiplier of the groups of a weight, which have something [N, G]: broadcasts to that."""
    found = _by_slice(lambda bits: _multiplier_limit(bits, scheme), scheme, groups)
    return groups.new_tensor(found) if isinstance(found, int) else found.squeeze(-1)


def _multiplier_limit(bits: int, scheme: Scheme) -> int:
    return largest_multiplier(bits) if _has_groups(bits, scheme) else 1


def _has_groups(bits: int, scheme: Scheme) -> bool:
    """Whether a slice of a grouped weight has: of rows those whose codes leave their multipliers room, as alone."""
    return not scheme.rows or bits <= MAX_GROUPED_BITS


def _by_slice(number: Callable[[int], int], scheme: Scheme, groups: Tensor) -> int | Tensor:
    """A number that goes by bits."""
    if len(scheme.slices) == 1:
        return number(scheme.bits)
    numbers = groups.new_tensor([number(bits) for bits in scheme.slices])
    axis = _axis(scheme)
    numbers = numbers.repeat_interleave(groups.shape[axis] // len(numbers))
    return numbers.view(-1, 1, 1) if axis == 0 else numbers.view(1, -1, 1)


def _axis(scheme: Scheme) -> int:
    return 1 if scheme.columns else 0
