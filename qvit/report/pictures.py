"""Pictures as PNG bytes: images in their own colours, maps as one hue, and grids of either."""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

# Dark to bright in one hue: only the brightness carries the value, so it reads the same to every eye and on paper.
_ANCHORS = np.array(
    [(10, 14, 31), (22, 48, 104), (33, 97, 173), (72, 158, 222), (160, 214, 240), (250, 252, 255)],
    dtype=np.float64,
)
_GAP = 2  # pixels between the pictures of a grid


def to_pixels(images: "Tensor", mean: Sequence[float], std: Sequence[float]) -> "NDArray[np.uint8]":
    """Normalised float images [B, C, H, W] as 8-bit pixels [B, H, W, C], clipped to what a pixel can be."""
    import torch

    scale, shift = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (std, mean))
    pixels = (images.detach().float().cpu() * scale + shift).clamp(0, 1) * 255
    return pixels.round().byte().permute(0, 2, 3, 1).numpy()


def colour_map(values: "NDArray[np.floating]") -> "NDArray[np.uint8]":
    """A map [rows, columns] from its own least (dark) to its own greatest value (bright), as pixels [rows, columns, 3].

    The brightness is the square root of the place between them: attention often has one peak, beside which nothing
    else would show. A constant map is all dark.
    """
    low, high = float(values.min()), float(values.max())
    place = (values - low) / (high - low) if high > low else np.zeros_like(values)
    position = np.sqrt(place) * (len(_ANCHORS) - 1)
    below = np.minimum(position.astype(int), len(_ANCHORS) - 2)
    part = (position - below)[..., None]
    return np.rint(_ANCHORS[below] * (1 - part) + _ANCHORS[below + 1] * part).astype(np.uint8)


def encode(pixels: "NDArray[np.uint8]") -> bytes:
    """Pixels [H, W, 3] as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def shrink(pixels: "NDArray[np.uint8]", side: int) -> "NDArray[np.uint8]":
    """Pixels [H, W, 3] averaged down so that no side is longer than `side`; smaller ones as they are."""
    height, width = pixels.shape[:2]
    factor = side / max(height, width)
    if factor >= 1:
        return pixels
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


def tile(
    pictures: Sequence["NDArray[np.uint8]"], columns: int | None = None
) -> "NDArray[np.uint8]":
    """Pictures [H, W, 3] of one size in a grid on white, row by row; as square a grid as fits without `columns`."""
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    height, width = pictures[0].shape[:2]
    grid = np.full(
        (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, dtype=np.uint8
    )
    for index, picture in enumerate(pictures):
        top, left = (index // columns) * (height + _GAP), (index % columns) * (width + _GAP)
        grid[top : top + height, left : left + width] = picture
    return grid


def enlarge(pixels: "NDArray[np.uint8]", size: tuple[int, int]) -> "NDArray[np.uint8]":
    """Pixels [H, W, 3] at another (height, width), every value a block of its own."""
    height, width = size
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST))


def decode(png: bytes) -> "NDArray[np.uint8]":
    """The pixels [H, W, 3] of a PNG."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
