"""Two-tone patterns that fill a blob: six classes.

Every function maps coordinates in pixels and a period in pixels to signed distances, in pixels, from the edge of the
second tone.
"""

from collections.abc import Callable, Mapping

import numpy as np

from qvit.demo.fields import Field


def _bands(x: Field, period: float) -> Field:
    """Bands half a period wide."""
    return (np.abs(_fraction(x / period) - 0.5) - 0.25) * period


def _fraction(x: Field) -> Field:
    return x - np.floor(x)


def _stripes(u: Field, v: Field, period: float) -> Field:
    return _bands(u, period)


def _checks(u: Field, v: Field, period: float) -> Field:
    across, down = _bands(u, 1.4 * period), _bands(v, 1.4 * period)
    return np.maximum(np.minimum(across, down), -np.maximum(across, down))


def _dots(u: Field, v: Field, period: float) -> Field:
    x, y = _fraction(u / period) - 0.5, _fraction(v / period) - 0.5
    return (np.sqrt(x * x + y * y) - 0.32) * period


def _bricks(u: Field, v: Field, period: float) -> Field:
    shift = _fraction(np.floor(v / period) * 0.5)  # every other course by half a brick
    across = (0.5 - np.abs(_fraction(u / (2 * period) + shift) - 0.5)) * (2 * period)
    down = (0.5 - np.abs(_fraction(v / period) - 0.5)) * period
    return np.minimum(across, down) - 0.13 * period


def _zigzag(u: Field, v: Field, period: float) -> Field:
    teeth = np.abs(_fraction(u / (1.6 * period)) - 0.5) * (1.6 * period)
    return _bands(v + teeth, period) * 0.7071  # the bands lie at 45 degrees


def _target(u: Field, v: Field, period: float) -> Field:
    return _bands(np.sqrt(u * u + v * v), 1.2 * period)


TEXTURES: Mapping[str, Callable[[Field, Field, float], Field]] = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "bricks": _bricks,
    "zigzag": _zigzag,
    "target": _target,
}
