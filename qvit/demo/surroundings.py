"""All that is no object: the background, clutter before and behind, things in the way."""

import numpy as np
from numpy.random import Generator

from qvit.demo.canvas import SIZE, Canvas, X, Y, random_turn, uniform
from qvit.demo.fields import Field, coverage, disc

_CELLS = (2, 3, 5, 9)  # of the background's noise, across the picture
_MOST_HIDDEN = 0.2  # of the object that gives a picture its class


def draw_background(rng: Generator) -> Field:
    """Smooth noise between two colours, in one of several sizes: float32 [3, 64, 64]."""
    first, second = rng.random(3, dtype=np.float32), rng.random(3, dtype=np.float32)
    second = first + (second - first) * np.float32(uniform(rng, 0.2, 0.8))
    mixture = _smooth_noise(rng, _CELLS[int(rng.integers(len(_CELLS)))])
    layer = first[:, None, None] + (second - first)[:, None, None] * mixture
    return layer + (_smooth_noise(rng, 17) - np.float32(0.5)) * np.float32(uniform(rng, 0.0, 0.15))


def draw_clutter(canvas: Canvas, rng: Generator) -> None:
    """Lines, specks and bars that belong to no class, half transparent, behind the objects."""
    for _ in range(int(rng.integers(2, 9))):
        shape = (
            _bar(rng, uniform(rng, 2, 22), uniform(rng, 0.5, 2))
            if rng.random() < 0.7
            else _speck(rng)
        )
        canvas.paint(coverage(shape) * np.float32(uniform(rng, 0.3, 0.9)), _any_colour(rng))


def draw_occluders(canvas: Canvas, rng: Generator, *, spared: int) -> None:
    """Up to two bars or discs in front, which leave most of object `spared` to be seen."""
    whole = np.count_nonzero(canvas.owner == spared)
    for _ in range(int(rng.integers(0, 3))):
        shape = (
            _bar(rng, uniform(rng, 10, 40), uniform(rng, 1.5, 4))
            if rng.random() < 0.6
            else _speck(rng, 4, 9)
        )
        cover, colour = coverage(shape), _any_colour(rng)
        seen = np.count_nonzero((canvas.owner == spared) & (cover < 0.5))
        if seen >= (1 - _MOST_HIDDEN) * whole:
            canvas.paint(cover, colour)


def _smooth_noise(rng: Generator, cells: int) -> Field:
    """Random values at the corners of cells x cells squares, interpolated smoothly: float32 [64, 64], 0 to 1."""
    corners = rng.random((cells + 1, cells + 1), dtype=np.float32)
    place = (np.arange(SIZE, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / SIZE)
    low = place.astype(np.int64)
    part = place - low.astype(np.float32)
    part = part * part * (3 - 2 * part)
    rows = corners[low] + (corners[low + 1] - corners[low]) * part[:, None]
    return rows[:, low] + (rows[:, low + 1] - rows[:, low]) * part


def _bar(rng: Generator, length: float, half_width: float) -> Field:
    cosine, sine = random_turn(rng)
    dx, dy = X - uniform(rng, 0, SIZE), Y - uniform(rng, 0, SIZE)
    along, across = np.abs(dx * cosine + dy * sine), np.abs(dy * cosine - dx * sine)
    return np.maximum(along - length, across - half_width)


def _speck(rng: Generator, low: float = 0.8, high: float = 3.0) -> Field:
    return disc(X, Y, uniform(rng, low, high), (uniform(rng, 0, SIZE), uniform(rng, 0, SIZE)))


def _any_colour(rng: Generator) -> tuple[float, float, float]:
    return rng.random(), rng.random(), rng.random()
