"""Filled outlines: twelve classes of shapes about one unit in radius, v pointing down.

Every function maps coordinates and a `form` in 0..1, which varies the proportions within a class, to signed distances.
"""

from collections.abc import Callable, Mapping

import numpy as np

from qvit.demo.fields import Field, Point, disc, polygon

# (cos, sin) of tenths and sixths of a turn, written out: a library's cosine is not the same on every platform.
_TENTHS = (
    (0.0, -1.0), (0.587785, -0.809017), (0.951057, -0.309017), (0.951057, 0.309017),
    (0.587785, 0.809017), (0.0, 1.0), (-0.587785, 0.809017), (-0.951057, 0.309017),
    (-0.951057, -0.309017), (-0.587785, -0.809017),
)  # fmt: skip
_SIXTHS = (
    (1.0, 0.0), (0.5, 0.866025), (-0.5, 0.866025), (-1.0, 0.0), (-0.5, -0.866025), (0.5, -0.866025),
)  # fmt: skip


def _ball(u: Field, v: Field, form: float) -> Field:
    return disc(u, v, 0.85 + 0.1 * form)


def _ring(u: Field, v: Field, form: float) -> Field:
    half = 0.14 + 0.1 * form
    return np.abs(disc(u, v, 0.95 - half)) - half


def _crescent(u: Field, v: Field, form: float) -> Field:
    return np.maximum(disc(u, v, 0.95), -disc(u, v, 0.8, (0.4 + 0.2 * form, 0.0)))


def _heart(u: Field, v: Field, form: float) -> Field:
    tip = 0.85 + 0.15 * form
    lobes = disc(np.abs(u), v, 0.5, (0.42, -0.32))
    return np.minimum(
        lobes, polygon(u, v, [(-0.86, -0.1), (-0.3, -0.5), (0.3, -0.5), (0.86, -0.1), (0.0, tip)])
    )


def _drop(u: Field, v: Field, form: float) -> Field:
    tip = -1.0 - 0.15 * form
    return np.minimum(
        disc(u, v, 0.58, (0.0, 0.37)), polygon(u, v, [(0.0, tip), (0.54, 0.17), (-0.54, 0.17)])
    )


def _triangle(u: Field, v: Field, form: float) -> Field:
    half = 0.75 + 0.25 * form
    return polygon(u, v, [(0.0, -0.95), (half, 0.65), (-half, 0.65)])


def _square(u: Field, v: Field, form: float) -> Field:
    height = 0.62 + 0.16 * form
    return np.maximum(np.abs(u) - 0.78, np.abs(v) - height)


def _hexagon(u: Field, v: Field, form: float) -> Field:
    return polygon(u, v, [(x * 0.95, y * (0.85 + 0.1 * form)) for x, y in _SIXTHS])


def _star(u: Field, v: Field, form: float) -> Field:
    inner = 0.38 + 0.1 * form
    return polygon(
        u, v, [(x, y) if i % 2 == 0 else (x * inner, y * inner) for i, (x, y) in enumerate(_TENTHS)]
    )


def _cross(u: Field, v: Field, form: float) -> Field:
    arm = 0.22 + 0.12 * form
    upright = np.maximum(np.abs(u) - arm, np.abs(v) - 0.95)
    return np.minimum(upright, np.maximum(np.abs(u) - 0.95, np.abs(v) - arm))


def _arrow(u: Field, v: Field, form: float) -> Field:
    shaft, head = 0.16 + 0.1 * form, 0.65 + 0.15 * form
    right: list[Point] = [(0.0, -1.0), (head, -0.15), (shaft, -0.15), (shaft, 0.95)]
    return polygon(u, v, [*right, *((-x, y) for x, y in reversed(right[1:]))])


def _bolt(u: Field, v: Field, form: float) -> Field:
    wide = 0.1 * form
    return polygon(
        u, v,
        [(0.15, -1.0), (-0.6 - wide, 0.15), (-0.08, 0.15), (-0.15, 1.0), (0.6 + wide, -0.2), (0.08, -0.2), (0.5, -1.0)],
    )  # fmt: skip


SHAPES: Mapping[str, Callable[[Field, Field, float], Field]] = {
    "disc": _ball,
    "ring": _ring,
    "crescent": _crescent,
    "heart": _heart,
    "drop": _drop,
    "triangle": _triangle,
    "square": _square,
    "hexagon": _hexagon,
    "star": _star,
    "cross": _cross,
    "arrow": _arrow,
    "bolt": _bolt,
}
