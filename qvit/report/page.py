"""What a report consists of: values that know nothing of HTML. A section is made by a small function
from what was found; rendering.py turns a page of them into HTML, Markdown and files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

# Who a mark belongs to. Each has one colour in the whole report, light and dark.
SYNTHETIC, REAL, NOISE = "synthetic", "real", "noise"
OURS, RIVAL, FLOAT = "ours", "rival", "float"


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Running text."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True, slots=True)
class Points:
    """Sentences that stand each for itself."""

    kind: ClassVar[str] = "points"
    texts: Sequence[str]


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence that must not be missed."""

    kind: ClassVar[str] = "notice"
    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells that are text already; `numeric` names the columns to be aligned right.

    `code`: the cells of the last column are set in a fixed width. `notes`: for every row a few words under its
    first cell. `folded`: the words behind which the table is shown on demand.
    """

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()
    caption: str = ""
    code: bool = False
    notes: Sequence[str] = ()
    folded: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing, what its colours mean, and its numbers for readers who get no drawing."""

    kind: ClassVar[str] = "figure"
    title: str
    svg: str
    alt: str
    caption: str = ""
    legend: Sequence[tuple[str, str]] = ()  # (role, words)
    numbers: Table | None = None


@dataclass(frozen=True, slots=True)
class Panels:
    """Small figures side by side under one legend."""

    kind: ClassVar[str] = "panels"
    figures: Sequence[Figure]
    caption: str = ""
    legend: Sequence[tuple[str, str]] = ()
    numbers: Table | None = None


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture: PNG bytes, what it shows, and up to two short lines under it."""

    png: bytes
    alt: str
    caption: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Gallery:
    """Pictures in a grid. `file` is the name of the same grid as one picture beside the report."""

    kind: ClassVar[str] = "gallery"
    tiles: Sequence[Tile]
    file: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Strip:
    """A row of a mosaic: whose it is, the picture it begins with, and one small picture a column."""

    role: str
    label: str
    start: Tile
    cells: Sequence[Tile]


@dataclass(frozen=True, slots=True)
class Mosaic:
    """Rows of small pictures under common headings."""

    kind: ClassVar[str] = "mosaic"
    title: str
    columns: Sequence[str]
    strips: Sequence[Strip]
    file: str
    caption: str = ""


Block = Paragraph | Points | Notice | Table | Figure | Panels | Gallery | Mosaic


@dataclass(frozen=True, slots=True)
class Section:
    """One question and its answer.

    Attributes:
        name: The anchor, and the key of `data` in the report's JSON.
        title: The heading.
        lead: What was found, in a sentence or two.
        blocks: The evidence, in order.
        data: The numbers behind it, plain values for JSON.
    """

    name: str
    title: str
    lead: str
    blocks: Sequence[Block] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Key:
    """A number at the top of the page: what it is, the value, and a few words beside it."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A report: a title, a line under it, the key numbers, the sections."""

    title: str
    subtitle: str
    keys: Sequence[Key]
    sections: Sequence[Section]
    footer: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The numbers of all sections by name."""
        return {section.name: dict(section.data) for section in self.sections if section.data}
