"""Augmentation of MimiQ's second stage: one draw for a whole batch, seen by teacher and student alike."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as pixels

_AREA, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of a random crop, as everywhere in the field
_JITTER, _HUE = 0.8, 0.2
_BLUR = (0.1, 2.0)  # standard deviations in pixels, of images of any size


def augment(
    images: Tensor, mean: Sequence[float], std: Sequence[float], generator: Generator
) -> Tensor:
    """Crop and resize, mirror, jitter colours, turn grey, blur (MimiQ, Choi et al., AAAI 2025, stage 2; the values are
    those of SimCLR, Chen et al., ICML 2020).

    Args:
        images: Normalised [B, 3, H, W].
        mean: Of the normalisation, per channel.
        std: The same.
        generator: Draws the same count of numbers each time.

    Returns:
        The same shape; each value one that a pixel can have.
    """
    drawn = torch.rand(12, generator=generator).tolist()
    seen = _crop(images, drawn[0:4])
    if drawn[4] < 0.5:
        seen = seen.flip(-1)
    m, s = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (mean, std))
    seen = (seen * s + m).clamp(0, 1)
    if drawn[5] < 0.8:
        seen = _jitter(seen, drawn[6:10])
    if drawn[10] < 0.2:
        seen = pixels.rgb_to_grayscale(seen, num_output_channels=3)
    seen = _blur(seen, drawn[11])
    return (seen.clamp(0, 1) - m) / s


def _crop(images: Tensor, drawn: Sequence[float]) -> Tensor:
    """A box of random area and shape, resized to the whole."""
    height, width = images.shape[-2:]
    area = height * width * _between(drawn[0], *_AREA)
    ratio = math.exp(_between(drawn[1], math.log(_RATIO[0]), math.log(_RATIO[1])))
    rows = min(height, max(1, round(math.sqrt(area / ratio))))
    columns = min(width, max(1, round(math.sqrt(area * ratio))))
    top, left = int(drawn[2] * (height - rows + 1)), int(drawn[3] * (width - columns + 1))
    box = images[..., top : top + rows, left : left + columns]
    return F.interpolate(box, (height, width), mode="bilinear", antialias=True)


def _jitter(images: Tensor, drawn: Sequence[float]) -> Tensor:
    brightness, contrast, saturation = (_between(d, 1 - _JITTER, 1 + _JITTER) for d in drawn[:3])
    images = pixels.adjust_brightness(images, brightness)
    images = pixels.adjust_contrast(images, contrast)
    images = pixels.adjust_saturation(images, saturation)
    return pixels.adjust_hue(images, _between(drawn[3], -_HUE, _HUE))


def _blur(images: Tensor, drawn: float) -> Tensor:
    """The published kernel is a tenth of 224 pixels; here it is a tenth of the image, and odd."""
    size = max(3, images.shape[-1] // 10 // 2 * 2 + 1)
    return pixels.gaussian_blur(images, [size, size], [_between(drawn, *_BLUR)] * 2)


def _between(drawn: float, low: float, high: float) -> float:
    return low + drawn * (high - low)
