"""Cells of a suite: measured once, kept as JSON files that say how they came about."""

import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qvit.machine import describe_machine, package_versions, source_commit

ROOT = Path(__file__).resolve().parent.parent
Cell = tuple[str, Callable[[], dict[str, Any]]]


def machine_name() -> str:
    """A folder name for this machine: processor and cores."""
    machine = describe_machine()
    words = "".join(c if c.isalnum() else " " for c in machine["cpu"].lower()).split()
    return "-".join([*words, f"{machine['cores']}-cores"])


def measure(cells: Iterator[Cell], out: Path) -> list[dict[str, Any]]:
    """Measure the cells that `out` does not hold yet; returns all of them, in order."""
    out.mkdir(parents=True, exist_ok=True)
    found = []
    for name, run in cells:
        path = out / f"{name}.json"
        if not path.is_file():
            print(f"{name} ...", file=sys.stderr, flush=True)
            cell = {"cell": name, **run(), **circumstances()}
            write_whole(path, json.dumps(cell, indent=2) + "\n")
        found.append(json.loads(path.read_text(encoding="utf-8")))
    return found


def circumstances() -> dict[str, Any]:
    """How a result came about: command, time, commit, versions, machine."""
    return {
        "command": " ".join(["python", *sys.argv]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": source_commit(),
        "versions": package_versions(),
        "machine": describe_machine(),
    }


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there as a whole or as it was: whoever is interrupted goes on from it."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
