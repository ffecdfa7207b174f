"""What every verb shares: its flags, where its result goes, and the progress it may show."""

import contextlib
import functools
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from qvit.errors import GateError


@dataclass(slots=True)
class Session:
    """One run of the program: how much it says, and in which form."""

    verbosity: int = 0  # -1 quiet, 0 usual, 1 and more verbose
    json: bool = False

    @property
    def progress(self) -> bool:
        """Whether progress bars may be shown; tqdm is silent anyway where stderr is no terminal."""
        return self.verbosity >= 0


@dataclass(frozen=True, slots=True)
class Result:
    """What a verb found: `data` for --json, `text` for people, and a gate that was missed, if one
    was. `silent`: another process of the same run prints it.
    """

    data: Mapping[str, Any]
    text: str
    missed: GateError | None = field(default=None)
    silent: bool = False


def verb(name: str, **settings: Any) -> Callable[[Callable[..., Result]], click.Command]:
    """Make a command of a function that takes the session and its options and returns a Result.

    Whatever the function or a library prints goes to stderr: stdout is for the result alone.
    """

    def decorate(function: Callable[..., Result]) -> click.Command:
        @click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
        @click.option("-v", "--verbose", count=True, help="Say more; show tracebacks.")
        @click.option("-q", "--quiet", is_flag=True, help="No progress and no remarks.")
        @click.pass_obj
        @functools.wraps(function)
        def run_verb(
            session: Session, /, *, as_json: bool, verbose: int, quiet: bool, **options: Any
        ) -> Result:
            session.json = as_json
            session.verbosity = -1 if quiet else verbose
            with contextlib.redirect_stdout(sys.stderr), remarks_on_stderr(session.verbosity):
                return function(session, **options)

        return click.command(name, **settings)(run_verb)

    return decorate


@contextlib.contextmanager
def remarks_on_stderr(verbosity: int) -> Iterator[None]:
    """Log records of qvit, and warnings, go to stderr as `qvit: ...` lines during the block."""
    logger = logging.getLogger("qvit")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("qvit: %(message)s"))
    before = logger.level, logger.propagate
    levels = {-1: logging.ERROR, 0: logging.INFO}
    logger.setLevel(levels.get(verbosity, logging.DEBUG))
    logger.propagate = False
    logger.addHandler(handler)
    shown = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        if verbosity > 0:
            shown(message, category, filename, lineno, file, line)
        elif issubclass(category, UserWarning):
            logger.warning("%s", message)

    try:
        warnings.showwarning = show
        yield
    finally:
        warnings.showwarning = shown
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


def print_result(result: Result, session: Session) -> None:
    """The result on stdout, flushed, so that a reader that went away or a full disk is noticed
    here.
    """
    text = json.dumps(result.data, indent=2, allow_nan=False) if session.json else result.text
    click.echo(text)
    sys.stdout.flush()


def tabulate(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Rows as an aligned table; `columns` maps a key of the rows to its heading. Numbers are
    right-aligned.
    """
    body = [[_cell(row.get(key)) for key in columns] for row in rows]
    heads = list(columns.values())
    widths = [max(len(line[i]) for line in [heads, *body]) for i in range(len(heads))]
    numeric = [
        all(isinstance(row.get(key), (int, float, type(None))) for row in rows) for key in columns
    ]

    def align(line: Sequence[str]) -> str:
        cells = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([align(heads), align(["-" * width for width in widths]), *map(align, body)])


def outline(values: Mapping[str, Any], indent: str = "") -> str:
    """Nested values as indented `key: value` lines; empty ones are left out."""
    lines = []
    for key, value in values.items():
        if value is None or value in ({}, [], ""):
            continue
        if isinstance(value, Mapping):
            lines += [f"{indent}{key}:", outline(value, indent + "  ")]
        elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            lines.append(f"{indent}{key}:")
            lines += [f"{indent}  - {_inline(item)}" for item in value]
        else:
            lines.append(f"{indent}{key}: {_inline(value)}")
    return "\n".join(lines)


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_inline, value))
    return _cell(value)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.2f}"
    return str(value)
