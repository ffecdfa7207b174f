"""Folders that appear whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qvit.errors import UsageError

# File systems end names at 255 bytes; a temporary sibling adds up to 20.
_LONGEST_NAME = 230


def check_target(
    out: Path,
    *,
    overwrite: bool,
    is_ours: Callable[[Path], bool],
    what: str = "a quantized model",
) -> None:
    """Refuse a target that may not or cannot be written, before any work is done.

    `is_ours` tells whether an existing folder is of our making, `what` we make; nothing else is ever replaced.
    """
    _check_place(out)
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"{out} is a file; choose another folder with -o")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"{out} exists; give --overwrite to replace it, or another folder with -o")
    if not is_ours(out):
        raise UsageError(
            f"{out} holds something else than {what}, and is not replaced; "
            "choose another folder with -o"
        )


def _check_place(out: Path) -> None:
    if len(out.name.encode()) > _LONGEST_NAME:
        raise UsageError(f"the folder name {out.name[:40]}... is too long; choose another with -o")
    above = next(p for p in out.parents if p.exists())
    if not above.is_dir():
        raise UsageError(f"{out}: {above} is a file; choose another folder with -o")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"{out}: {above} may not be written to; choose another folder with -o")


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A temporary sibling to write into; it becomes `out` at the end, and vanishes if anything fails.

    `out` is resolved (`Path.resolve`), or a link would be replaced instead of what it points to.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = _sibling(out, "partial")
    staging.mkdir()
    try:
        yield staging
        _replace(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _replace(staging: Path, out: Path) -> None:
    if not out.exists():
        staging.rename(out)
        return
    old = _sibling(out, "old")
    out.rename(old)
    try:
        staging.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sibling(out: Path, purpose: str) -> Path:
    """A hidden name beside `out` that nobody uses."""
    return out.parent / f".{out.name}.{secrets.token_hex(4)}.{purpose}"
