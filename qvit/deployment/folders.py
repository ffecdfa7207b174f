"""Folders that appear whole or not at all."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qvit.errors import UsageError


def check_target(out: Path, *, overwrite: bool, marker: str) -> None:
    """Refuse a target that may not be written, before any work is done.

    `marker`: a file that shows an existing folder to be of our making; nothing else is ever replaced.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"{out} is a file; choose another folder with -o")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"{out} exists; give --overwrite to replace it, or another folder with -o")
    if not (out / marker).is_file():
        raise UsageError(
            f"{out} holds something else than a quantized model (no {marker}), and is not replaced; "
            "choose another folder with -o"
        )


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A temporary sibling to write into; it becomes `out` at the end, and vanishes if anything fails."""
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
