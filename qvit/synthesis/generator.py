"""A network that makes images out of random numbers, told which class and where attention shall be.

The plan is that of generators for data-free quantization since GDFQ (Xu et al., ECCV 2020): a few rows and columns of
features, doubled by every block up to the size of an image, with normalisation that the condition modulates. Where
attention shall be enters twice: as two of the numbers that modulate, and as two maps of each place's distance from it.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from qvit.models.networks import NetworkConfig
from qvit.recipe import Synthesis
from qvit.synthesis.noise import pixel_bounds

_SMALLEST = 7  # rows and columns that the generator begins with, at least
_FEWEST = 16  # channels of a block, at least
_MARGIN = 0.2  # centres keep this far from the border; our choice


@dataclass(frozen=True, slots=True)
class Condition:
    """What the generator is told.

    Attributes:
        labels: int64 [B]; -1 where there is no class.
        centres: fp32 [B, 2], row and column of the middle of attention, from 0 to 1.
    """

    labels: Tensor
    centres: Tensor


def draw_condition(
    count: int, config: NetworkConfig, generator: Generator, device: torch.device
) -> Condition:
    """Uniform classes and centres, whether the generator will be told of them or not."""
    classes = max(1, config.num_classes)
    labels = torch.randint(classes, (count,), generator=generator)
    if not config.num_classes:
        labels = torch.full_like(labels, -1)
    drawn = torch.rand((count, 2), generator=generator)
    centres = _MARGIN + (1 - 2 * _MARGIN) * drawn
    return Condition(labels.to(device), centres.to(device))


def block_shapes(image_size: tuple[int, int], width: int) -> list[tuple[int, int, int]]:
    """Channels, rows and columns of the first features and after every block, in order."""
    doublings = max(0, int(math.log2(min(image_size) / _SMALLEST)))
    shapes = []
    for block in range(doublings + 1):
        shrunk = 2 ** (doublings - block)
        rows, columns = (-(-side // shrunk) for side in image_size)
        shapes.append((max(_FEWEST, width >> max(0, block - 1)), rows, columns))
    return shapes


class ImageGenerator(nn.Module):
    """Latents [B, latent] and a condition to images fp32 [B, C, H, W], each value one that a pixel can have."""

    low: Tensor
    high: Tensor

    def __init__(self, config: NetworkConfig, settings: Synthesis) -> None:
        """Weights are drawn from torch's global generator."""
        super().__init__()
        self.told_label = settings.condition != "none" and config.num_classes > 0
        self.told_centre = settings.condition == "centre"
        self.size = config.image_size
        shapes = block_shapes(config.image_size, settings.width)
        self.first = shapes[0]
        told = settings.latent * (1 + self.told_label) + 2 * self.told_centre
        self.classes = (
            nn.Embedding(config.num_classes, settings.latent) if self.told_label else None
        )
        self.start = nn.Linear(told, math.prod(self.first))
        self.blocks = nn.ModuleList(
            _Block(before[0] + 2 * self.told_centre, after, told)
            for before, after in zip([shapes[0], *shapes], shapes, strict=False)
        )
        self.pixels = nn.Conv2d(shapes[-1][0], config.in_chans, 3, padding=1)
        low, high = pixel_bounds(config, torch.device("cpu"))
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)

    def forward(self, latents: Tensor, condition: Condition) -> Tensor:
        """In train mode under the batch's statistics, in eval mode each image by itself."""
        parts = [latents]
        if self.classes is not None:
            parts.append(self.classes(condition.labels))
        if self.told_centre:
            # of the size of the other numbers: centres are within 0.3 of the middle
            parts.append((condition.centres - 0.5) * 4)
        told = torch.cat(parts, -1)
        x = self.start(told).view(-1, *self.first)
        for block in self.blocks:
            x = F.interpolate(x, block.size, mode="nearest")  # pyright: ignore[reportArgumentType]
            if self.told_centre:
                x = torch.cat([x, _distances(condition.centres, x)], 1)
            x = block(x, told)
        return self.low + (self.high - self.low) * self.pixels(x).sigmoid()


class _Block(nn.Module):
    """Convolution, normalisation that the condition modulates, and a leaky rectifier."""

    def __init__(self, channels: int, shape: tuple[int, int, int], told: int) -> None:
        super().__init__()
        self.size = shape[1:]
        self.convolution = nn.Conv2d(channels, shape[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(shape[0], affine=False)
        self.modulation = nn.Linear(told, 2 * shape[0])
        nn.init.normal_(self.modulation.weight, std=0.02)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        gain, offset = self.modulation(told)[..., None, None].chunk(2, 1)
        return F.leaky_relu(self.norm(self.convolution(x)) * (1 + gain) + offset, 0.2)


def _distances(centres: Tensor, x: Tensor) -> Tensor:
    """How far below and to the right of the centre every place of x is: [B, 2, rows, columns]."""
    rows, columns = place_grid(x.shape[-2], x.shape[-1], x.device)
    down = rows - centres[:, 0, None, None]
    right = columns - centres[:, 1, None, None]
    return torch.stack([down, right], 1).to(x.dtype)


def place_grid(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of the middle of every place, from 0 to 1: [rows, columns] each."""
    down = (torch.arange(rows, device=device) + 0.5) / rows
    right = (torch.arange(columns, device=device) + 0.5) / columns
    grid = torch.meshgrid(down, right, indexing="ij")
    return grid[0], grid[1]
