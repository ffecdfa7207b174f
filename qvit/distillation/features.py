"""Features: block by block, what the student hands on should be what the teacher hands on."""

from collections.abc import Sequence

import torch
from torch import Tensor


def feature_distance(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """Mean over blocks of the squared difference of outputs, each in units of its mean square.

    Without the units the last blocks, whose residual stream is tens of times longer, would be all that counts.

    Args:
        teacher: Of every block or stage, any shape.
        student: The same shapes.

    Returns:
        A scalar; 1 for a student that answers zero everywhere.

    Raises:
        ValueError: There are no features, or not as many.
    """
    if not teacher or len(teacher) != len(student):
        raise ValueError(
            f"features of {len(teacher)} blocks of the teacher and {len(student)} of the student cannot be compared"
        )
    parts = []
    for ours, theirs in zip(student, teacher, strict=True):
        wide = torch.promote_types(ours.dtype, torch.float32)
        target = theirs.detach().to(wide)
        unit = target.square().mean().clamp_min(1e-12)
        parts.append((ours.to(wide) - target).square().mean() / unit)
    return torch.stack(parts).mean()
