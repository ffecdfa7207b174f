"""Drawings as SVG text. Colours are CSS classes of the page (page.py's roles), so that they follow light and dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 10, 38
_LABEL = 12  # font size, as in the page's style sheet
_CHARACTER = 7.2  # width of one at that size, generously


@dataclass(frozen=True, slots=True)
class Series:
    """Points joined by a line. `faint`: one of many, behind the others; `marked`: with a dot at every point."""

    name: str
    role: str
    points: Sequence[tuple[float, float]]
    faint: bool = False
    marked: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A horizontal line at a value to compare with."""

    name: str
    role: str
    value: float


def draw_lines(
    series: Sequence[Series],
    *,
    x_label: str,
    y_range: tuple[float, float] | None = None,
    rules: Sequence[Rule] = (),
    whole_x: bool = False,
    size: tuple[int, int] = (470, 230),
) -> str:
    """Lines over a common x axis. Points that are not finite are left out.

    Args:
        series: Drawn in order, the first at the back.
        x_label: Under the axis.
        y_range: Of the y axis; without it, what the points and rules need.
        rules: Values to compare with, dashed.
        whole_x: Ticks at whole numbers only.
        size: Width and height in pixels.
    """
    kept = [(s, [p for p in s.points if all(map(math.isfinite, p))]) for s in series]
    xs = [x for _, points in kept for x, _ in points] or [0.0, 1.0]
    ys = [y for _, points in kept for _, y in points] + [rule.value for rule in rules]
    low, high = y_range or _padded(ys or [0.0, 1.0])
    frame = _Frame(size, (min(xs), max(xs)), (low, high))
    parts = [*frame.grid(), *frame.x_axis(x_label, whole_x)]
    for rule in rules:
        y = frame.y(rule.value)
        parts.append(
            f'<line class="rule {rule.role}" x1="{_LEFT}" x2="{size[0] - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}">'
            f"<title>{escape(rule.name)}: {_number(rule.value)}</title></line>"
        )
    for each, points in kept:
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
        faint = " faint" if each.faint else ""
        parts.append(
            f'<polyline class="line {each.role}{faint}" points="{path}">'
            f"<title>{escape(each.name)}</title></polyline>"
        )
        if each.marked or len(points) == 1:
            parts += [
                f'<circle class="dot {each.role}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3.5">'
                f"<title>{escape(each.name)}, {_number(x)}: {_number(y)}</title></circle>"
                for x, y in points
            ]
    return _svg(size, parts)


def draw_bars(
    rows: Sequence[tuple[str, float, float | None]],
    *,
    role: str,
    value_name: str,
    mark_name: str = "",
    roles: Sequence[str] = (),
    least: float = 1.0,
    width: int = 470,
) -> str:
    """Horizontal bars, one a row of (name, value, mark or None); a mark is a short line across at that value.

    roles: Of the rows one by one, where they are not all `role`'s. least: What the longest bar stands for at least.
    """
    pitch, thickness = 21, 13
    left = min(160, max([30, *(int(len(_cut(name)) * _CHARACTER) + 14 for name, _, _ in rows)]))
    top = max([least, *(max(value, mark or 0) for _, value, mark in rows)])
    scale = (width - left - 54) / top
    parts = []
    for index, (name, value, mark) in enumerate(rows):
        own = roles[index] if roles else role
        y = 4 + index * pitch
        words = f"{name}: {_number(value)} {value_name}"
        words += f", {_number(mark)} {mark_name}" if mark is not None else ""
        parts += [
            f"<g><title>{escape(words)}</title>",
            f'<text class="tick" x="{left - 8}" y="{y + 11}" text-anchor="end">{escape(_cut(name))}</text>',
            f'<line class="grid" x1="{left}" x2="{left}" y1="{y - 4}" y2="{y + pitch - 4}"/>',
            f'<rect class="bar {own}" x="{left}" y="{y}" width="{value * scale:.1f}" height="{thickness}" rx="2"/>',
        ]
        if mark is not None:
            x = left + mark * scale
            parts.append(
                f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 3}" y2="{y + thickness + 3}"/>'
            )
        # at the right end: behind a short bar it would stand beside the mark and seem to be the mark's
        parts.append(
            f'<text class="tick" x="{width - 6}" y="{y + 11}" text-anchor="end">{_number(value)}</text></g>'
        )
    return _svg((width, 8 + pitch * len(rows)), parts)


def draw_columns(
    groups: Sequence[tuple[str, Sequence[tuple[str, str, float]]]],
    *,
    x_label: str,
    size: tuple[int, int] = (470, 230),
) -> str:
    """Upright columns: each group a label and its (role, name, share in percent), side by side."""
    top = max([1.0, *(value for _, columns in groups for _, _, value in columns)])
    frame = _Frame(size, (0, len(groups)), (0, _nice_above(top)))
    parts = [*frame.grid(suffix="%")]
    for index, (label, columns) in enumerate(groups):
        start, end = frame.x(index), frame.x(index + 1)
        width = (end - start - 6) / max(len(columns), 1)
        for place, (role, name, value) in enumerate(columns):
            x, y = start + 3 + place * width, frame.y(value)
            parts.append(
                f'<rect class="bar {role}" x="{x + 0.5:.1f}" y="{y:.1f}" width="{width - 1:.1f}" '
                f'height="{max(frame.y(0) - y, 0):.1f}" rx="1.5">'
                f"<title>{escape(name)}, {escape(label)}: {value:.1f} %</title></rect>"
            )
        parts.append(
            f'<text class="tick" x="{(start + end) / 2:.1f}" y="{size[1] - _BOTTOM + 16}" '
            f'text-anchor="middle">{escape(label)}</text>'
        )
    parts.append(frame.x_title(x_label))
    return _svg(size, parts)


class _Frame:
    """From values to pixels, and the axes."""

    def __init__(
        self, size: tuple[int, int], xs: tuple[float, float], ys: tuple[float, float]
    ) -> None:
        self.size = size
        self.xs = xs if xs[1] > xs[0] else (xs[0] - 0.5, xs[0] + 0.5)
        self.ys = ys

    def x(self, value: float) -> float:
        low, high = self.xs
        return _LEFT + (value - low) / (high - low) * (self.size[0] - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.ys
        return _TOP + (high - value) / (high - low) * (self.size[1] - _TOP - _BOTTOM)

    def grid(self, suffix: str = "") -> list[str]:
        parts = []
        for value in ticks(*self.ys, 5):
            y = self.y(value)
            parts += [
                f'<line class="grid" x1="{_LEFT}" x2="{self.size[0] - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>',
                f'<text class="tick" x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">'
                f"{_number(value)}{suffix}</text>",
            ]
        return parts

    def x_axis(self, label: str, whole: bool) -> list[str]:
        values = ticks(*self.xs, 6)
        if whole:
            values = [v for v in values if v == int(v)]
        parts = [
            f'<text class="tick" x="{self.x(v):.1f}" y="{self.size[1] - _BOTTOM + 16}" '
            f'text-anchor="middle">{_number(v)}</text>'
            for v in values
        ]
        return [*parts, self.x_title(label)]

    def x_title(self, label: str) -> str:
        middle = (_LEFT + self.size[0] - _RIGHT) / 2
        return (
            f'<text class="axis" x="{middle:.1f}" y="{self.size[1] - 5}" text-anchor="middle">'
            f"{escape(label)}</text>"
        )


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round values within [low, high], about `count` of them."""
    step = _nice_above((high - low) / count)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _nice_above(value: float) -> float:
    """The least of 1, 2, 2.5, 5 times a power of ten that is not below the value."""
    if not value > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= value * (1 - 1e-9))


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.05 * abs(high) or 0.5
    # a range that begins near zero begins there: half an axis below it would say that there are negative values
    bottom = 0.0 if 0 <= low < 0.25 * high else low - room
    return bottom, high + room


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\u202f") if abs(value) >= 10000 else str(int(value))
    return f"{value:.4g}" if abs(value) >= 1 else f"{value:.3g}"


def _cut(name: str) -> str:
    return name if len(name) <= 20 else name[:19].rstrip() + "…"


def _svg(size: tuple[int, int], parts: Sequence[str]) -> str:
    width, height = size
    return (
        f'<svg viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" font-size="{_LABEL}">'
        + "".join(parts)
        + "</svg>"
    )
