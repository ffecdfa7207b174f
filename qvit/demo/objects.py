"""The things a picture can show: placed, turned, filled and drawn on a canvas."""

import numpy as np
from numpy.random import Generator

from qvit.demo.canvas import SIZE, Canvas, Colour, X, Y, random_colour, random_turn, uniform
from qvit.demo.fields import Field, coverage, disc
from qvit.demo.glyphs import GLYPHS, draw_glyph
from qvit.demo.shapes import SHAPES
from qvit.demo.textures import TEXTURES

CLASSES = (*SHAPES, *TEXTURES, *GLYPHS)

_MAIN_RADIUS = (16.0, 25.0)  # pixels
_COMPANION_RADIUS = (4.0, 6.5)
_UPRIGHT = 0.2  # the tangent of half the largest tilt of a glyph: 23 degrees


def draw_object(canvas: Canvas, rng: Generator, label: int, number: int, *, main: bool) -> None:
    """Draw an object of a class somewhere, large or small; its pixels get `number`."""
    radius = uniform(rng, *(_MAIN_RADIUS if main else _COMPANION_RADIUS))
    margin = 0.8 * radius if main else radius
    x, y = uniform(rng, margin, SIZE - margin), uniform(rng, margin, SIZE - margin)
    around = canvas.colour_at(x, y)
    name = CLASSES[label]
    if name in TEXTURES:
        _draw_texture(canvas, rng, name, number, (x, y, radius), around)
        return
    upright = name in GLYPHS
    u, v = _place(rng, x, y, radius, upright)
    form = rng.random()
    outline = draw_glyph(name, u, v, form) if upright else SHAPES[name](u, v, form)
    _fill(canvas, rng, outline * np.float32(radius), number, around)


def _place(rng: Generator, x: float, y: float, radius: float, upright: bool) -> tuple[Field, Field]:
    """Coordinates of every pixel in an object's own frame: turned, stretched, for a glyph also slanted."""
    cosine, sine = random_turn(rng, _UPRIGHT if upright else 1.0)
    stretch = uniform(rng, 0.85, 1.18)
    dx, dy = (X - x) / radius, (Y - y) / radius
    u = (dx * cosine + dy * sine) * stretch
    v = (dy * cosine - dx * sine) / stretch
    return (u + v * uniform(rng, -0.2, 0.2) if upright else u), v


def _fill(canvas: Canvas, rng: Generator, distance: Field, number: int, around: Colour) -> None:
    """One colour, shaded along a random direction; often with a rim in another."""
    colour = random_colour(rng, [around])
    cosine, sine = random_turn(rng)
    slope = uniform(rng, 0.0, 0.012)  # of the brightness, per pixel
    shade = ((X - SIZE / 2) * cosine + (Y - SIZE / 2) * sine) * slope
    layer = np.clip(np.asarray(colour, np.float32)[:, None, None] + shade, 0, 1)
    cover = coverage(distance)
    if rng.random() < 0.3:
        canvas.paint(coverage(distance - 1.2), random_colour(rng, [around, colour]), number)
    canvas.paint(cover, layer, number)


def _draw_texture(
    canvas: Canvas,
    rng: Generator,
    name: str,
    number: int,
    place: tuple[float, float, float],
    around: Colour,
) -> None:
    """A blob of three discs, filled with two tones."""
    x, y, radius = place
    blob = disc(X, Y, 0.8 * radius, (x, y))
    for _ in range(2):
        cosine, sine = random_turn(rng)
        centre = (x + 0.5 * radius * cosine, y + 0.5 * radius * sine)
        blob = np.minimum(blob, disc(X, Y, uniform(rng, 0.4, 0.65) * radius, centre))
    cosine, sine = random_turn(rng)
    dx, dy = X - x, Y - y
    period = uniform(rng, 0.3, 0.5) * radius
    # A companion's period would be below two pixels, which no picture can show.
    pattern = TEXTURES[name](dx * cosine + dy * sine, dy * cosine - dx * sine, max(period, 3.5))
    first = random_colour(rng, [around])
    second = random_colour(rng, [first])
    tone = coverage(pattern)
    base = np.asarray(first, np.float32)[:, None, None]
    canvas.paint(
        coverage(blob), base + (np.asarray(second, np.float32)[:, None, None] - base) * tone, number
    )
