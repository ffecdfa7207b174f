"""The folder of a run: where it stands, in one file that is replaced whole, and a log with a line a step.

state.pt    student, optimiser and step; what the run is; how long its log was
log.jsonl   losses of steps, and after every epoch how the student does on images that it is not trained on

What a killed run had logged beyond its last state is cut off when it goes on, and written again with the same numbers.
"""

import io
import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from qvit.errors import InputError, UsageError
from qvit.synthesis.shards import write_whole

STATE, LOG = "state.pt", "log.jsonl"


class RunLog:
    """Lines of one process; `path` None, or another rank than the first: they are dropped."""

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else path.open("ab")

    @property
    def length(self) -> int:
        """Bytes that are written."""
        return 0 if self._file is None else self._file.tell()

    def cut(self, length: int) -> None:
        """Forget what comes after so many bytes. Raises InputError where there are fewer."""
        if self._file is None:
            return
        self._file.seek(0, io.SEEK_END)
        if self._file.tell() < length:
            raise InputError(
                f"{self._file.name} is shorter than the state of its run says; remove the folder and begin again"
            )
        self._file.truncate(length)
        self._file.seek(length)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line; a number that is not finite becomes null, since JSON has none."""
        if self._file is not None:
            kept = {
                name: None if isinstance(value, float) and not isfinite(value) else value
                for name, value in line.items()
            }
            self._file.write((json.dumps(kept, allow_nan=False) + "\n").encode())
            self._file.flush()

    def close(self) -> None:
        """Nothing is written after."""
        if self._file is not None:
            self._file.close()


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write beside, to the disk, and rename: a killed run leaves the state before, or this one."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_whole(folder / STATE, buffer.getvalue())


def load_state(folder: Path, run: Mapping[str, Any], device: str) -> dict[str, Any] | None:
    """The last state of a run; None where there is none yet.

    Args:
        folder: Of the run.
        run: Everything that decides its bits.
        device: Where tensors go.

    Raises:
        UsageError: The folder holds another run.
        InputError: The file is damaged.
    """
    path = folder / STATE
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        theirs = state["run"]
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, UnpicklingError) as error:
        raise InputError(
            f"{path} is damaged ({error}); remove the folder and begin again"
        ) from error
    told = "; ".join(
        f"{name}: {_short(theirs.get(name))} there, {_short(value)} now"
        for name, value in run.items()
        if theirs.get(name) != value
    )
    if told:
        raise UsageError(
            f"{folder} holds another run ({told}); repeat the command that began it, or choose another folder"
        )
    return state


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl; none where nothing was logged. One that a killed run left unfinished is left out."""
    path = folder / LOG
    if not path.is_file():
        return []
    finished = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in finished]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:24]}..."
