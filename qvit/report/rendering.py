"""A page as one self-contained HTML file, as Markdown, and as the pictures that Markdown refers to."""

import base64
import functools
import math
import re
from collections.abc import Iterator
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from qvit.report.page import Gallery, Mosaic, Page
from qvit.report.pictures import decode, encode, enlarge, tile

_TEMPLATES = Path(__file__).parent / "templates"
_CELL = 96  # pixels of a mosaic's cell in its file


def render_html(page: Page) -> str:
    """One HTML document: styles, drawings and pictures are inside, it asks no server for anything."""
    return _environment().get_template("page.html").render(page=page)


def render_markdown(page: Page) -> str:
    """The same in Markdown; pictures are links to the files of `draw_files`, drawings are their numbers."""
    text = _environment().get_template("page.md").render(page=page)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def draw_files(page: Page) -> dict[str, bytes]:
    """Name and PNG bytes of every picture that Markdown links to."""
    return dict(_files(page))


def _files(page: Page) -> Iterator[tuple[str, bytes]]:
    for section in page.sections:
        for block in section.blocks:
            if isinstance(block, Gallery):
                yield block.file, encode(tile([decode(each.png) for each in block.tiles]))
            elif isinstance(block, Mosaic):
                cells = [
                    enlarge(decode(each.png), (_CELL, _CELL))
                    for strip in block.strips
                    for each in (strip.start, *strip.cells)
                ]
                yield block.file, encode(tile(cells, columns=len(block.columns) + 1))


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"data_uri": _data_uri, "svg": Markup, "cell": _cell, "plain": _plain}
    environment.globals |= {"ceil": math.ceil}
    return environment


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _cell(text: str) -> str:
    """A cell of a Markdown table: a bar would end it, a line break the row, and angle brackets may be tags."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, in one line: names of models and classes may hold its signs.

    Underlines within a word are left alone: they mean nothing there, and demo_vit stays readable.
    """
    text = " ".join(text.split()).replace("<", "&lt;")
    text = re.sub(r"([\\`*\[\]])", r"\\\1", text)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\_", text)
