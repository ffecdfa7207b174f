"""Orthogonal transforms: choosing blocks and signs, and folding them into weights.

A transform T is orthogonal, so (W T^T)(T x) = W x: the activation is transformed where it is made, the
weight once, here. See QuaRot (Ashkboos et al. 2024) for the idea; the blocks are this project's.
"""

import torch
from torch import Tensor

from qvit_kernels.reference import BlockTransform, block_transform


def fitting_block(width: int, wanted: int) -> int:
    """Largest divisor of `width` not above `wanted`, preferring one with a power of two of at least 16; 0 for 0."""
    divisors = [d for d in range(1, min(wanted, width) + 1) if width % d == 0]
    hadamard = [d for d in divisors if d & -d >= 16]
    return max(hadamard or divisors, default=0)


def random_signs(width: int, generator: torch.Generator) -> Tensor:
    """fp32 [width] of +1 and -1."""
    return torch.randint(0, 2, (width,), generator=generator).float() * 2 - 1


def fold_input(weight: Tensor, transform: BlockTransform | None) -> Tensor:
    """Weight [N, K] for an input that arrives transformed."""
    return block_transform(weight, transform)


def unfold_input(weight: Tensor, transform: BlockTransform | None) -> Tensor:
    """The weight [N, K] that `fold_input` was given, back from what it made of it; in the weight's own precision."""
    if transform is None:
        return weight
    signs, block = transform
    unit = torch.eye(block, dtype=weight.dtype, device=weight.device)
    matrix = block_transform(unit, BlockTransform(torch.ones_like(unit[0]), block))
    turned = weight.unflatten(-1, (-1, block)) @ matrix.T
    return turned.flatten(-2) * signs


def fold_output(
    weight: Tensor, bias: Tensor, transform: BlockTransform | None
) -> tuple[Tensor, Tensor]:
    """Weight [N, K] and bias [N] of a Linear whose output shall be transformed."""
    return block_transform(weight.T, transform).T, block_transform(bias, transform)
