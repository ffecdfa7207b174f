"""Rendered pictures as tensors for training: drawn once, varied for each use."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from qvit.demo.canvas import SIZE
from qvit.demo.glyphs import GLYPHS
from qvit.demo.objects import CLASSES
from qvit.demo.scenes import render

PATCH = 8
_LARGEST_SHIFT = 4  # pixels
_CHANNEL_ORDERS = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
_TURNABLE = torch.tensor([name not in GLYPHS for name in CLASSES])


@dataclass(frozen=True, slots=True)
class Rendered:
    """The beginning of a series.

    Attributes:
        images: uint8 [N, 64, 64, 3].
        labels: int64 [N].
        regions: uint8 [N, 64, 64]; 0 for the background, class + 1 where an object is seen.
    """

    images: Tensor
    labels: Tensor
    regions: Tensor


def render_series(seed: int, count: int) -> Rendered:
    """The first `count` pictures of a series."""
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    regions = np.empty((count, SIZE, SIZE), np.uint8)
    labels = np.empty(count, np.int64)
    for index in tqdm(range(count), desc="render", disable=None):
        scene = render(seed, index)
        images[index], labels[index] = scene.image, scene.label
        regions[index] = np.concatenate([[0], scene.classes + 1]).astype(np.uint8)[scene.mask]
    return Rendered(torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(regions))


def normalise(images: Tensor) -> Tensor:
    """uint8 [B, height, width, 3] to float32 [B, 3, height, width] in -1..1, as mean and std of 0.5 make it."""
    return images.permute(0, 3, 1, 2).float().div_(255).sub_(0.5).div_(0.5)


def augment(
    series: Rendered, chosen: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """A batch, varied in ways that leave the class: normalised images, labels, and regions.

    Channels are permuted, colours inverted, all shifted alike, and all but glyphs turned by quarters.
    """
    images, labels, regions = (t[chosen] for t in (series.images, series.labels, series.regions))
    count = len(labels)
    orders = _CHANNEL_ORDERS[torch.randint(0, 6, (count,), generator=generator)]
    images = images.gather(3, orders[:, None, None, :].expand_as(images))
    inverted = torch.rand(count, generator=generator) < 0.5
    images = torch.where(inverted[:, None, None, None], 255 - images, images)
    turns = torch.randint(0, 4, (count,), generator=generator) * _TURNABLE[labels]
    for quarter in (1, 2, 3):
        those = turns == quarter
        images[those] = images[those].rot90(quarter, (1, 2))
        regions[those] = regions[those].rot90(quarter, (1, 2))
    shift = torch.randint(-_LARGEST_SHIFT, _LARGEST_SHIFT + 1, (2,), generator=generator).tolist()
    images, regions = images.roll(shift, (1, 2)), regions.roll(shift, (1, 2))
    return normalise(images), labels, regions


def shares(regions: Tensor) -> Tensor:
    """How much of every patch shows each class: uint8 [B, 64, 64] to float32 [B, patches, classes + 1]."""
    side, kinds = SIZE // PATCH, len(CLASSES) + 1
    cells = regions.long().view(-1, side, PATCH, side, PATCH).permute(0, 1, 3, 2, 4)
    patches = torch.arange(len(regions) * side * side).view(-1, side, side, 1, 1)
    counts = torch.bincount((patches * kinds + cells).flatten(), minlength=patches.numel() * kinds)
    return counts.view(-1, side * side, kinds) / PATCH**2
