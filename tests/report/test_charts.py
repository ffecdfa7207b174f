"""Drawings: points land where their values say, and nothing in a name can leave its place."""

import math
import xml.etree.ElementTree as ET

import pytest

from qvit.report.charts import Rule, Series, draw_bars, draw_columns, draw_lines, ticks


def parse(svg):
    return ET.fromstring(svg)


def numbers(text):
    return [tuple(map(float, pair.split(","))) for pair in text.split()]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.43, 0.51, [0.44, 0.46, 0.48, 0.5]),
        (0, 2000, [0, 500, 1000, 1500, 2000]),
        (-3, 3, [-2, 0, 2]),
    ],
)
def test_ticks_are_round_and_inside(low, high, expected):
    assert ticks(low, high, 5) == pytest.approx(expected)


def test_line_follows_its_values():
    """Equal steps in the values are equal steps in pixels, upwards, and a rule lies at its value's height."""
    series = [Series("a", "synthetic", [(0, 1.0), (10, 2.0), (20, 3.0)], marked=True)]
    drawing = parse(draw_lines(series, x_label="iteration", rules=[Rule("real", "real", 2.0)]))
    (line,) = drawing.iter("polyline")
    (x0, y0), (x1, y1), (x2, y2) = numbers(line.get("points"))
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y1
    (rule,) = [e for e in drawing.iter("line") if "rule" in e.get("class")]
    assert float(rule.get("y1")) == y1
    assert [e.find("title").text for e in drawing.iter("circle")] == [
        "a, 0: 1",
        "a, 10: 2",
        "a, 20: 3",
    ]


def test_everything_drawn_is_inside():
    points = [(i, math.sin(i) * 1e6) for i in range(30)]
    drawing = parse(draw_lines([Series("a", "synthetic", points)], x_label="x", size=(300, 200)))
    for x, y in numbers(next(drawing.iter("polyline")).get("points")):
        assert 0 <= x <= 300
        assert 0 <= y <= 200


def test_values_that_are_not_finite_are_left_out():
    points = [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)]
    svg = draw_lines([Series("a", "synthetic", points)], x_label="x")
    assert len(numbers(next(parse(svg).iter("polyline")).get("points"))) == 2
    assert "nan" not in svg


@pytest.mark.parametrize(
    "points", [[], [(5, 0.0)], [(5, 3.0), (6, 3.0)]], ids=["none", "one", "flat"]
)
def test_little_to_draw(points):
    parse(draw_lines([Series("a", "synthetic", points)], x_label="x"))


def test_bars_are_as_long_as_their_values():
    rows = [
        ("disc", 4.0, 2.0),
        ("a very long name of a class, indeed", 2.0, 2.0),
        ("none", 0.0, 2.0),
    ]
    drawing = parse(draw_bars(rows, role="synthetic", value_name="seen", mark_name="asked for"))
    four, two, none = [float(e.get("width")) for e in drawing.iter("rect")]
    assert four == pytest.approx(2 * two, abs=0.2)
    assert none == 0
    first = next(drawing.iter("rect"))
    marks = {float(e.get("x1")) for e in drawing.iter("line") if e.get("class") == "mark"}
    assert len(marks) == 1
    assert marks.pop() == pytest.approx(float(first.get("x")) + two, abs=0.2)


def test_columns_are_as_high_as_their_values():
    groups = [("0", [("synthetic", "synthetic", 50.0), ("real", "real", 25.0)]), ("10", [])]
    drawing = parse(draw_columns(groups, x_label="x"))
    fifty, twentyfive = [float(e.get("height")) for e in drawing.iter("rect")]
    assert fifty == pytest.approx(2 * twentyfive, abs=0.2)


def test_names_cannot_break_out():
    name = '</title><script>alert("x")</script>'
    for svg in (
        draw_lines([Series(name, "synthetic", [(0, 1), (1, 2)])], x_label=name),
        draw_bars([(name, 1.0, None)], role="synthetic", value_name=name),
        draw_columns([(name, [("synthetic", name, 1.0)])], x_label=name),
    ):
        assert not list(parse(svg).iter("script"))
