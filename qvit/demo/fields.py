"""Signed distances: the outlines that shapes and glyphs are made of.

A field gives each point of a picture its distance to an outline, negative inside. Only additions, multiplications,
divisions and square roots are used: IEEE 754 rounds these the same everywhere, and sines it does not.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# float32 throughout; numpy's stubs believe that a Python float makes it float64
Field = NDArray[np.floating]
Point = tuple[float, float]


def coverage(distance: Field) -> Field:
    """How much of each pixel lies inside, 0 to 1, from distances in pixels."""
    return np.clip(np.float32(0.5) - distance, 0, 1)


def disc(u: Field, v: Field, radius: float, centre: Point = (0.0, 0.0)) -> Field:
    """Distance to a circle."""
    return np.sqrt((u - centre[0]) ** 2 + (v - centre[1]) ** 2) - radius


def strokes(u: Field, v: Field, lines: Sequence[Sequence[Point]]) -> Field:
    """Distance to the nearest of several polylines; never negative."""
    starts = [point for line in lines for point in line[:-1]]
    ends = [point for line in lines for point in line[1:]]
    return np.sqrt(_squared_distances(u, v, starts, ends).min(axis=0))


def polygon(u: Field, v: Field, corners: Sequence[Point]) -> Field:
    """Signed distance to a closed polygon, convex or not."""
    ends = [*corners[1:], corners[0]]
    distance = np.sqrt(_squared_distances(u, v, corners, ends).min(axis=0))
    ax, ay, bx, by = _columns(corners, ends)
    # A point is inside if a ray from it crosses the outline an odd number of times.
    crosses = ((ay <= v) != (by <= v)) & (
        ((bx - ax) * (v - ay) < (u - ax) * (by - ay)) == (by > ay)
    )
    inside = np.logical_xor.reduce(crosses, axis=0)
    return np.where(inside, -distance, distance)


def _squared_distances(u: Field, v: Field, starts: Sequence[Point], ends: Sequence[Point]) -> Field:
    """Of every point to every line segment: [segments, height, width]."""
    ax, ay, bx, by = _columns(starts, ends)
    ex, ey = bx - ax, by - ay
    wx, wy = u - ax, v - ay
    along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
    return (wx - along * ex) ** 2 + (wy - along * ey) ** 2


def _columns(starts: Sequence[Point], ends: Sequence[Point]) -> list[Field]:
    a, b = np.asarray(starts, np.float32), np.asarray(ends, np.float32)
    return [column[:, None, None] for column in (a[:, 0], a[:, 1], b[:, 0], b[:, 1])]
