"""The results of a GPU suite in one JSON file, written after every cell, so that a run can stop anywhere and go on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.cells import write_whole


class Ledger:
    """Cells by name, kept in `path`.

    Results belong to an identity (card, sources, versions): what a file holds of another identity is not continued but
    replaced, at the first new result.

    Attributes:
        replaced: Whether the file holds results of another identity.
        summary: What was said of all cells together; empty while cells are missing.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.identity = dict(identity)
        self.cells: dict[str, dict[str, Any]] = {}
        self.summary: dict[str, Any] = {}
        found = _read(path)
        self.replaced = found is not None and found.get("identity") != self.identity
        if found is not None and not self.replaced:
            self.cells, self.summary = found["cells"], found["summary"]

    def add(self, name: str, result: dict[str, Any]) -> None:
        """Keep the result of a cell."""
        self.cells[name] = result
        self._write()

    def close(self, summary: dict[str, Any], circumstances: dict[str, Any]) -> None:
        """Keep what is said of all cells together, and how they came about."""
        self.summary = summary
        self._write(circumstances)

    def _write(self, circumstances: dict[str, Any] | None = None) -> None:
        """A cell a line: small, and a difference between two runs can be read."""
        cells = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in self.cells.items())
        heads = {
            "identity": self.identity,
            "summary": self.summary,
            "circumstances": circumstances or {},
        }
        lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in heads.items())
        text = f'{{\n{lines},\n "cells": {{\n{cells}\n }}\n}}\n'
        write_whole(self.path, text)


def _read(path: Path) -> dict[str, Any] | None:
    """None for a file that is not there, or that no ledger wrote."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and {"identity", "cells", "summary"} <= found.keys()
    return found if whole else None
