"""One page of every kind of block: self-contained, escaped, and the same in Markdown."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from qvit.report.page import (
    Figure,
    Gallery,
    Key,
    Mosaic,
    Notice,
    Page,
    Panels,
    Paragraph,
    Points,
    Section,
    Strip,
    Table,
    Tile,
)
from qvit.report.pictures import decode, encode
from qvit.report.rendering import draw_files, render_html, render_markdown

EVIL = '<img src=x onerror="alert(1)">|pipe'
# They never have an end tag.
VOID = {"meta", "img", "br", "hr", "link", "input"}


def square(value):
    return encode(np.full((4, 4, 3), value, dtype=np.uint8))


@pytest.fixture(scope="module")
def page():
    table = Table(
        ("name", "value"), [(EVIL, "1"), ("b", "2")], frozenset({1}), notes=("note a", "note b")
    )
    figure = Figure(
        "Losses", '<svg viewBox="0 0 1 1"></svg>', "from 2 to 1", "smaller is better", (), table
    )
    strip = Strip("synthetic", "synthetic", Tile(square(10), "start"), [Tile(square(20), "map")])
    blocks = [
        Paragraph(f"running {EVIL}"),
        Points(["one thing", f"another {EVIL}"]),
        Notice("be warned"),
        table,
        figure,
        Panels([figure, figure], "two of them", [("real", "real images")], table),
        Gallery(
            [Tile(square(v), f"image {v}", EVIL, "9 %") for v in (1, 2, 3)], "grid.png", "the grid"
        ),
        Mosaic("Block 1", ["head 1"], [strip, strip], "maps.png"),
    ]
    section = Section("first", f"First {EVIL}", "what was found", blocks, {"answer": 42})
    return Page(
        "A title",
        "and more",
        [Key("key", "7", "of 9")],
        [section, Section("second", "Second", "x")],
        "end",
    )


class Outline(HTMLParser):
    """Tags in order, every address a tag refers to, and the tags left open."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [
            value for name, value in attrs if name in ("src", "href", "srcset", "data")
        ]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_is_whole_and_asks_nobody(page):
    html = render_html(page)
    outline = Outline()
    outline.feed(html)
    assert outline.open == []
    assert all(a.startswith(("data:image/png;base64,", "#")) for a in outline.addresses)
    assert [a for a in outline.addresses if a.startswith("#")] == ["#first", "#second"]
    assert outline.tags.count("img") == 3 + 2 * 2
    assert outline.tags.count("svg") == 3
    assert "script" not in outline.tags
    assert not re.search(r"https?://|url\(|@import", html)
    assert "prefers-color-scheme: dark" in html


def test_every_text_is_shown_in_both(page):
    html, markdown = render_html(page), render_markdown(page)
    for text in (
        "A title",
        "and more",
        "of 9",
        "be warned",
        "what was found",
        "smaller is better",
        "note b",
        "end",
    ):
        assert text in html
        assert text in markdown


def test_markdown_tables_are_rectangular(page):
    rows = [line for line in render_markdown(page).splitlines() if line.startswith("|")]
    table = [row for row in rows if row.count("|") - row.count("\\|") == 3]
    assert "| name | value |" in table
    assert "| --- | ---: |" in table
    assert any("\\|pipe: note a | 1 |" in row for row in table)
    assert not any("<img" in row for row in rows)
    assert "\n\n\n" not in render_markdown(page)


def test_pictures_of_markdown_are_the_files(page):
    files = draw_files(page)
    assert (
        re.findall(r"\]\(([^)]+)\)", render_markdown(page))
        == ["grid.png", "maps.png"]
        == list(files)
    )
    grid = decode(files["grid.png"])
    assert sorted(set(grid[:, :, 0].ravel().tolist())) == [1, 2, 3, 255]
    maps = decode(files["maps.png"])
    assert maps.shape[:2] == (2 * 96 + 2, 2 * 96 + 2)


def test_numbers_by_section(page):
    assert page.to_dict() == {"first": {"answer": 42}}


def test_names_with_signs_of_markdown_are_shown_as_they_are():
    title = "3 images from *my*_model_[v2](evil) `x` \\ <b> demo_vit"
    text = render_markdown(
        Page(f"{title}\n# not a heading", "a _b_ c", [], [Section("a", title, title)], "end")
    )
    lines = text.splitlines()
    assert lines[0].startswith("# 3 images from ")
    assert lines[0].endswith("demo_vit # not a heading")
    assert r"\*my\*" in lines[0]
    assert r"\[v2\](evil) \`x\` \\ &lt;b> demo_vit" in lines[0]
    assert r"a \_b\_ c" in text
    assert sum(line.startswith("# ") for line in lines) == 1


def test_points_are_a_list(page):
    assert '<ul class="points"><li>one thing</li><li>another &lt;img' in render_html(page)
    assert "\n- one thing\n- another &lt;img" in render_markdown(page)
