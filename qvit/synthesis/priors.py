"""What is wanted of an image before the network is asked: a class, a total variation, a map of attention."""

import math

import torch
from torch import Tensor

from qvit.models.config import ViTConfig
from qvit.synthesis.objective import Batch

# Published targets of total variation are for so many values: 32 images of 3 x 224 x 224.
_REFERENCE_VALUES = 32 * 3 * 224 * 224


def draw_labels(batch: Batch) -> Tensor:
    """A class for every image, uniform: int64 [B]. -1 for a model without classes."""
    if not batch.config.num_classes:
        return torch.full((batch.count,), -1)
    return torch.randint(batch.config.num_classes, (batch.count,), generator=batch.generator)


def draw_smoothness(batch: Batch) -> float:
    """The total variation that the batch is led to; 0 for as little as possible.

    A Frobenius norm grows with the root of how many numbers it sums, and the published range is one for 32 images
    of 224 x 224: other sizes get the same variation a pixel.
    """
    low, high = batch.settings.smoothness_low, batch.settings.smoothness_high
    drawn = low + (high - low) * float(torch.rand(1, generator=batch.generator))
    values = batch.count * batch.config.in_chans * math.prod(batch.config.image_size)
    return drawn * math.sqrt(values / _REFERENCE_VALUES)


def draw_soft_labels(wanted: Tensor, batch: Batch) -> Tensor:
    """softmax(Z) with Z from U(soft_low, soft_high) for wanted classes and U(0, 1) for all others (SARDFQ, soft
    labels; the range of the others is our choice).

    Args:
        wanted: bool [N, classes].
        batch: Whose settings and generator.

    Returns:
        fp32 [N, classes]; each row sums to 1.
    """
    low, high = batch.settings.soft_low, batch.settings.soft_high
    drawn = torch.rand(wanted.shape, generator=batch.generator)
    return torch.where(wanted, low + (high - low) * drawn, drawn).softmax(-1)


def draw_prior_maps(images: int, batch: Batch) -> Tensor:
    """Attention maps to be aimed at: a random mixture of Gaussians for every image and head of every block.

    Each of the `mixtures` components has a centre in the image, standard deviations of 1/20 to 1/4 of its side along
    two turned axes, and a random weight (SARDFQ, section on attention priors; the paper fixes the number of
    components, 5, and the rest is our choice).

    Returns:
        fp32 [blocks, images, heads, P]; each map sums to 1.
    """
    config, parts = batch.config, batch.settings.mixtures
    assert isinstance(config, ViTConfig)
    rows, columns = (i // p for i, p in zip(config.image_size, config.patch_size, strict=True))
    shape = (config.depth, images, config.num_heads, parts)

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand((*shape, 1), generator=batch.generator)

    y, x = torch.meshgrid(
        (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij"
    )
    dy, dx = y.flatten() - draw(0, 1), x.flatten() - draw(0, 1)
    angle, long, short = draw(0, math.pi), draw(0.05, 0.25), draw(0.05, 0.25)
    along = (dx * angle.cos() + dy * angle.sin()) / long
    across = (dy * angle.cos() - dx * angle.sin()) / short
    density = (-0.5 * (along.square() + across.square())).exp() * draw(0, 1)
    total = density.sum(-2) + 1e-6  # a mixture whose centres all lie outside is nearly flat
    return total / total.sum(-1, keepdim=True)
