"""Sessions of the suites for a GPU, dry: on the CPU, in the interpreter."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def dry_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A session as --dry-run begins it, with the sources that it began with: others may be at work on the tree."""
    gpu_session = import_module("benchmarks.gpu.session")
    monkeypatch.setattr(gpu_session, "source_hash", lambda: "0123456789abcdef")

    def begin(seconds: float = 600.0) -> Any:
        return gpu_session.begin(tmp_path, dry=True, seconds=seconds, started=None)

    return begin


@pytest.fixture
def green(dry_session: Callable[..., Any]) -> Callable[..., Any]:
    """The same, in a folder where gpu-check has passed."""
    session = dry_session()
    session.close(session.open("gpu-check"), {"passed": True})
    return dry_session
