"""What is drawn on: colours, and which object every pixel shows."""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from qvit.demo.fields import Field

SIZE = 64
Colour = tuple[float, float, float]

_CENTRES = np.arange(SIZE, dtype=np.float32) + np.float32(0.5)
X, Y = np.meshgrid(_CENTRES, _CENTRES)  # [64, 64] each: the centre of every pixel


class Canvas:
    """A picture in the making.

    Attributes:
        colours: float32 [3, 64, 64], 0 to 1.
        owner: uint8 [64, 64], the number of the object that each pixel shows, 0 for none.
    """

    def __init__(self, background: Field) -> None:
        self.colours = background
        self.owner = np.zeros((SIZE, SIZE), np.uint8)

    def paint(self, cover: Field, colours: Field | Colour, number: int = 0) -> None:
        """Lay colours ([3, 64, 64], or one) over the picture where `cover` says."""
        layer = np.asarray(colours, np.float32)
        layer = layer[:, None, None] if layer.ndim == 1 else layer
        self.colours += (layer - self.colours) * cover
        self.owner[cover >= 0.5] = number

    def colour_at(self, x: float, y: float) -> Colour:
        """The colour of the pixel at a place."""
        column, row = (min(max(int(value), 0), SIZE - 1) for value in (x, y))
        red, green, blue = (float(value) for value in self.colours[:, row, column])
        return red, green, blue

    def pixels(self, rng: Generator) -> NDArray[np.uint8]:
        """The picture as a camera with a little noise sees it: uint8 [64, 64, 3]."""
        strength = np.float32(uniform(rng, 0.0, 0.12))
        noise = rng.random((3, SIZE, SIZE), dtype=np.float32) - np.float32(0.5)
        seen = np.clip(self.colours + strength * noise, 0, 1) * np.float32(255)
        return np.ascontiguousarray(np.rint(seen).astype(np.uint8).transpose(1, 2, 0))


def uniform(rng: Generator, low: float, high: float) -> float:
    """A number in low..high."""
    return low + (high - low) * rng.random()


def random_turn(rng: Generator, tangent: float = 1.0) -> tuple[float, float]:
    """Cosine and sine of a random angle: any for a tangent of 1, else within twice its arc tangent of upright.

    By the rational parametrisation of the circle, which needs no sine.
    """
    t = uniform(rng, -tangent, tangent)
    sign = -1.0 if tangent == 1.0 and rng.random() < 0.5 else 1.0
    return sign * (1 - t * t) / (1 + t * t), sign * 2 * t / (1 + t * t)


def random_colour(rng: Generator, apart: list[Colour], distance: float = 0.45) -> Colour:
    """A colour at least so far from all others in RGB, or the farthest of twelve."""
    best, farthest = (0.0, 0.0, 0.0), -1.0
    for _ in range(12):
        colour = (rng.random(), rng.random(), rng.random())
        least = min(
            (sum((a - b) ** 2 for a, b in zip(colour, other, strict=True)) for other in apart),
            default=4.0,
        )
        if least > farthest:
            best, farthest = colour, least
        if farthest >= distance * distance:
            break
    return best
