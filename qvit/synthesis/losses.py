"""What an image is optimised towards: one plain function a term."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qvit.synthesis.recording import BlockRecord

# Scores computed on together: 600 kB in float32, which stay in a core's cache from one pass to the next.
_TOGETHER = 150_000
# The constants of SSIM for values from 0 to 1.
_C1, _C2 = 0.01**2, 0.03**2


def inter_head_distance(scores: Tensor) -> Tensor:
    """How unlike the heads' attention is: 0 where all heads have the same maps, up to the sign (MimiQ, Choi et al.,
    AAAI 2025, the inter-head term of the synthesis loss).

    The row of every head and query is scaled to 0..1, X = (A - min A) / (max A - min A + 1e-8), and compared over
    one window as large as the map, with means mu and covariances s over the P keys:

        SSIM_ij = (2 mu_i mu_j + C1)(2 s_ij + C2) / ((mu_i^2 + mu_j^2 + C1)(s_ii + s_jj + C2))
        result  = mean over images, queries and all pairs (i, j) of 1 - SSIM_ij^2

    A head with itself is among the pairs and adds nothing, as published. The paper's summary has 1 - |SSIM|; the
    square, which the authors' code has, is smooth at 0. Neither X nor a map for each pair is ever made: mean and
    covariance of X follow from those of A.

    Args:
        scores: q k^T, fp32 [B, H, N, P]: N queries, P keys.

    Returns:
        A scalar from 0 to 1.
    """
    centred = scores - scores.mean(-1, keepdim=True)
    low, high = centred.amin(-1), centred.amax(-1)  # [B, H, N]
    span = (high - low) + 1e-8
    mean = (-low / span).transpose(1, 2)  # [B, N, H]
    rows = centred.transpose(1, 2)  # [B, N, H, P]
    covariance = (rows @ rows.transpose(-1, -2)) / scores.shape[-1]  # [B, N, H, H]
    span = span.transpose(1, 2)
    covariance = covariance / (span.unsqueeze(-1) * span.unsqueeze(-2))
    return (1 - _ssim(mean, covariance).square()).mean()


def inter_head_distance_of(record: BlockRecord) -> Tensor:
    """`inter_head_distance` of a block's scores, an image at a time and with its gradient on the way.

    The scores of one image stay in a core's cache, and no image's are kept for the backward pass: at 12 heads and 16
    images those of the plain form take 90 MB a block.
    """
    q, k = (t[:, :, record.prefix :].float() for t in (record.q, record.k))
    found = _ByImage.apply(q, k)
    assert isinstance(found, Tensor)
    return found


class _ByImage(torch.autograd.Function):
    """q, k [B, H, P, d] to the mean of `inter_head_distance` over images; the gradient is found with the value."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        together = max(1, _TOGETHER // (q.shape[1] * q.shape[2] * k.shape[2]))
        total, gradients = q.new_zeros(()), []
        for part_q, part_k in zip(q.split(together), k.split(together), strict=True):
            share = len(part_q) / len(q)
            with torch.set_grad_enabled(wanted):
                leaves = [t.detach().requires_grad_(wanted) for t in (part_q, part_k)]
                distance = share * inter_head_distance(leaves[0] @ leaves[1].transpose(-1, -2))
            total += distance.detach()
            if wanted:
                gradients.append(torch.autograd.grad(distance, leaves))
        if wanted:
            ctx.save_for_backward(*(torch.cat(parts) for parts in zip(*gradients, strict=True)))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, ...]:
        """The gradient that was found, times that of the result."""
        return tuple(grads[0] * gradient for gradient in ctx.saved_tensors)


def _ssim(mean: Tensor, covariance: Tensor) -> Tensor:
    """Means [..., H] and covariances [..., H, H] to SSIM [..., H, H]."""
    ours, theirs = mean.unsqueeze(-1), mean.unsqueeze(-2)
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    luminance = (2 * ours * theirs + _C1) / (ours.square() + theirs.square() + _C1)
    spread = variance.unsqueeze(-1) + variance.unsqueeze(-2)
    return luminance * (2 * covariance + _C2) / (spread + _C2)


def class_distance(logits: Tensor, labels: Tensor, floor: float = 0.0) -> Tensor:
    """Cross-entropy in nats, averaged over the batch: -1/B sum_b sum_c y_bc log softmax(z_b)_c.

    The class is the easy part: it is reached in tens of steps, and what follows only makes the model surer. With a
    floor, an image below it adds the floor and is not pushed further.

    Args:
        logits: [B, classes].
        labels: int64 [B], or probabilities fp32 [B, classes].
        floor: In nats.
    """
    distances = F.cross_entropy(logits.float(), labels, reduction="none")
    return (distances.clamp_min(floor) if floor else distances).mean()


def prior_map_distance(attention: Tensor, maps: Tensor) -> Tensor:
    """Mean square between attention and a map drawn in advance, both as multiples of the uniform map (SARDFQ, Zhong et
    al., ICCV 2025, attention priors alignment).

        mean over images and heads of 1/P sum_p (P a_p - P m_p)^2      a = attention / sum(attention)

    The paper compares maps that sum to 1, so that its weight depends on P; in multiples of 1/P it does not.

    Args:
        attention: How much the class token attends to the patches, [B, H, P], not negative.
        maps: [B, H, P]; each sums to 1.
    """
    shares = attention / attention.sum(-1, keepdim=True)
    return ((shares - maps) * maps.shape[-1]).square().mean()


def total_variation(images: Tensor, diagonal: float = 1.0) -> Tensor:
    """Norms of the differences of neighbours, over the whole batch: ||dx|| + ||dy|| + diagonal (||d1|| + ||d2||).

    Frobenius norms, not squared. PSAQ-ViT counts diagonals fully (1), MimiQ by their distance (1/sqrt 2).

    Args:
        images: [B, C, H, W].
        diagonal: Weight of the two diagonals.
    """
    across, down, falling, rising = map(torch.linalg.vector_norm, neighbour_differences(images))
    return across + down + diagonal * (falling + rising)


def neighbour_differences(images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels [B, C, H, W] less their neighbours to the right, below, and below on either side."""
    return (
        images[..., :-1] - images[..., 1:],
        images[..., :-1, :] - images[..., 1:, :],
        images[..., :-1, :-1] - images[..., 1:, 1:],
        images[..., 1:, :-1] - images[..., :-1, 1:],
    )
