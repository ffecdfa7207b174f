"""Folders that appear whole or not at all."""

import os
import shutil
import tempfile
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
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        staging.chmod(0o777 & ~_umask())
        yield staging
        _replace(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _replace(staging: Path, out: Path) -> None:
    if not out.exists():
        staging.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
    out.rename(old / out.name)
    try:
        staging.rename(out)
    except OSError:
        (old / out.name).rename(out)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
