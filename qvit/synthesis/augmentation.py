"""Variations of the images that the network sees in place of the pixels that are optimised; gradients flow back."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

_REFERENCE_SIDE = 224  # published shifts are for images of this size


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the pixels went: rolled by so many rows and columns, then mirrored or not."""

    rows: int = 0
    columns: int = 0
    mirrored: bool = False

    def apply(self, images: Tensor) -> Tensor:
        """images: [B, C, H, W]."""
        moved = images.roll((self.rows, self.columns), (-2, -1))
        return moved.flip(-1) if self.mirrored else moved

    def apply_to_patches(self, chosen: Tensor, patch: tuple[int, int]) -> Tensor:
        """The nearest move by whole patches, for a choice of patches bool [B, rows, columns]."""
        shift = round(self.rows / patch[0]), round(self.columns / patch[1])
        moved = chosen.roll(shift, (-2, -1))
        return moved.flip(-1) if self.mirrored else moved


def draw_placement(
    size: tuple[int, int], shift: int, diagonal: bool, flip: float, generator: Generator
) -> Placement:
    """A random one.

    Args:
        size: Height and width of the images in pixels.
        shift: Largest roll, in pixels of an image of 224.
        diagonal: The same roll on both axes.
        flip: Probability of a mirror image.
        generator: Draws three numbers, whatever the settings.
    """
    numbers = torch.rand(3, generator=generator).tolist()
    limits = [round(shift * side / _REFERENCE_SIDE) for side in size]
    rows = int(numbers[0] * (2 * limits[0] + 1)) - limits[0]
    columns = int(numbers[1] * (2 * limits[1] + 1)) - limits[1]
    return Placement(rows, rows if diagonal else columns, numbers[2] < flip)


def shift_colours(images: Tensor, amount: float, generator: Generator) -> Tensor:
    """Add one Gaussian number of standard deviation `amount` to every image and channel of [B, C, H, W]."""
    drawn = torch.randn(images.shape[:2], generator=generator).to(images.device)
    return images + amount * drawn[..., None, None]


def jitter_colours(images: Tensor, amount: float, generator: Generator) -> Tensor:
    """(x - m) / s with m from U(-amount, amount) and s = exp(U(-amount, amount)), per image and channel."""
    drawn = torch.rand((2, *images.shape[:2]), generator=generator).to(images.device)
    middle, spread = amount * (2 * drawn - 1)
    return (images - middle[..., None, None]) / spread.exp()[..., None, None]
