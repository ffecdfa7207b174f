"""Heads: the spatial structure of each head's attention output, the student's against the teacher's."""

import torch
from torch import Tensor

from qvit.models.student import Seen

# The constant of SSIM's contrast and structure for values from 0 to 1; outputs of attention are of that order.
_C2 = 0.03**2


def head_distance(teacher: Seen, student: Seen, focus: float = 1.0, share: float = 0.1) -> Tensor:
    """1 - SSIM without luminance, over the patches of every channel of every head (MimiQ, Choi et al., AAAI 2025,
    section on head-wise structural attention distillation).

    Each (block, image, head, channel) is a map over the N patch queries; with means m and population moments over it

        s = (2 cov(t, q) + C2) / (var(t) + var(q) + C2)          result = 1 - mean of s

    MaskAQ (ICML 2026) makes the patches that matter count more: moments weighted with `focus` on the `share` of the
    patches where the teacher's mean |output| over heads and channels is largest, and 1 elsewhere, each image by itself.
    That the weights enter the moments is our reading of it.

    Args:
        teacher: Seen of the float model.
        student: Seen of the student, on the same images.
        focus: Weight of the patches that matter; 1 is MimiQ's loss.
        share: How many of them there are.

    Returns:
        A scalar from 0 to 2.

    Raises:
        ValueError: One of them has no attention, or not as many blocks as the other.
    """
    if not teacher.attention or len(teacher.attention) != len(student.attention):
        raise ValueError(
            f"attention of {len(teacher.attention)} blocks of the teacher and {len(student.attention)} of the student "
            "cannot be compared; leave the heads out with distillation.heads=0"
        )
    parts = []
    for theirs, ours in zip(teacher.attention, student.attention, strict=True):
        target = theirs.output[:, :, teacher.prefix :].detach().float()
        found = ours.output[:, :, student.prefix :].float()
        weights = None if focus == 1 else patch_weights(target, focus, share)
        parts.append(structural_similarity(target, found, weights).mean())
    return 1 - torch.stack(parts).mean()


def structural_similarity(target: Tensor, found: Tensor, weights: Tensor | None = None) -> Tensor:
    """SSIM without luminance over the patches.

    Args:
        target: [B, H, N, d], the teacher's.
        found: The same shape, the student's.
        weights: [B, N], each row sums to 1; None for equal ones.

    Returns:
        [B, H, d], each from -1 to 1.
    """
    if weights is None:
        shares = target.new_full((1, 1, 1, target.shape[-2]), 1 / target.shape[-2])
    else:
        shares = weights[:, None, None, :]

    def mean(x: Tensor) -> Tensor:
        return (shares @ x).squeeze(-2)

    # Moments of differences: E[x^2] - E[x]^2 would cancel where a channel is far from zero.
    t = target - mean(target).unsqueeze(-2)
    q = found - mean(found).unsqueeze(-2)
    covariance, spread = mean(t * q), mean(t * t) + mean(q * q)
    return (2 * covariance + _C2) / (spread + _C2)


def patch_weights(target: Tensor, focus: float, share: float) -> Tensor:
    """`focus` for the share of patches with the largest mean |output|, 1 for the others, scaled to sum 1.

    target: [B, H, N, d]; returns [B, N]. At least one patch has the factor.
    """
    salience = target.abs().mean((1, 3))
    count = max(1, round(share * salience.shape[-1]))
    chosen = salience.topk(count, -1).indices
    weights = torch.ones_like(salience).scatter(-1, chosen, focus)
    return weights / weights.sum(-1, keepdim=True)
