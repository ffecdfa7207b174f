"""Characters drawn with strokes: six classes, within one unit of the centre, v pointing down."""

from collections.abc import Mapping, Sequence

from qvit.demo.fields import Field, Point, strokes

_BOWL: Sequence[Point] = (
    (-0.55, -0.9), (0.1, -0.9), (0.42, -0.78), (0.52, -0.46), (0.42, -0.14), (0.1, -0.02), (-0.55, -0.02),
)  # fmt: skip

GLYPHS: Mapping[str, Sequence[Sequence[Point]]] = {
    "A": [[(-0.65, 0.9), (0.0, -0.9), (0.65, 0.9)], [(-0.42, 0.28), (0.42, 0.28)]],
    "E": [[(0.55, -0.9), (-0.5, -0.9), (-0.5, 0.9), (0.55, 0.9)], [(-0.5, -0.02), (0.38, -0.02)]],
    "K": [[(-0.5, -0.9), (-0.5, 0.9)], [(0.55, -0.9), (-0.5, 0.1)], [(-0.15, -0.22), (0.6, 0.9)]],
    "R": [[(-0.55, 0.9), *_BOWL], [(0.0, -0.02), (0.58, 0.9)]],
    "S": [
        [
            (0.55, -0.62), (0.36, -0.84), (0.0, -0.93), (-0.38, -0.83), (-0.54, -0.5), (-0.4, -0.2), (0.0, -0.03),
            (0.42, 0.16), (0.56, 0.48), (0.4, 0.8), (0.0, 0.93), (-0.38, 0.83), (-0.57, 0.6),
        ]
    ],
    "4": [[(0.62, 0.38), (-0.62, 0.38), (0.22, -0.9), (0.22, 0.92)]],
}  # fmt: skip


def draw_glyph(name: str, u: Field, v: Field, form: float) -> Field:
    """Signed distance to a character whose strokes are thin for `form` 0 and fat for 1."""
    return strokes(u, v, GLYPHS[name]) - (0.1 + 0.08 * form)
