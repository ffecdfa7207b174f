"""One call of a GPU suite: the card or its stand-in, the clock, what is measured already, and when to stop."""

import faulthandler
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.cells import ROOT, circumstances
from benchmarks.gpu.ledger import Ledger
from qvit.machine import package_versions

# What a speed or an equality is a property of: a change in any of them makes old results those of something else.
_SOURCES = ("kernels/qvit_kernels", "qvit")
_CHECKING = ("checks/*.py", "cases/*.py", "gpu/check.py")

DONE, FAILED, REFUSED, UNFINISHED = 0, 1, 2, 3  # exit codes; click has 2 for what it refuses
_FIRST_CELL_SECONDS = 30.0  # what a first cell may take, before one was seen
_GRACE_SECONDS = 50.0  # what a last cell may take beyond the limit
_MARGIN = 1.25  # a later cell may be slower than the slowest so far

Work = Callable[[], dict[str, Any]]


class RefusalError(Exception):
    """A suite that cannot run here, or must not; the message says why and what to do."""


@dataclass
class Session:
    """What every GPU suite is given.

    Attributes:
        folder: Where the JSON files are.
        device: The card; the CPU in a dry run, where kernels run in Triton's interpreter.
        dry: Tiny shapes, one repetition: the code paths of the suite and no result.
        seconds: How long a call may take.
        started: time.monotonic() of its beginning.
    """

    folder: Path
    device: torch.device
    dry: bool
    seconds: float
    started: float = field(default_factory=time.monotonic)
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)

    @property
    def card(self) -> str:
        """Name of the card, as a file name has it."""
        name = "dry-run" if self.dry else torch.cuda.get_device_name(self.device)
        return card_slug(name)

    def left(self) -> float:
        """Seconds until the call must have ended."""
        return self.seconds - (time.monotonic() - self.started)

    def identity(self) -> dict[str, Any]:
        """What the results of this call belong to."""
        versions = package_versions(("torch", "triton"))
        return {"card": self.card, "source": source_hash(), "dry": self.dry, **versions}

    def open(self, suite: str) -> Ledger:
        """The ledger of a suite, with what earlier calls measured of the same sources on the same card."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(self.folder / f"{suite}.json", self.identity())
        if ledger.replaced:
            self.say(f"{ledger.path} is of other sources or another card, and is begun anew")
        return ledger

    def require_green_check(self) -> None:
        """Raise RefusalError unless gpu-check has passed with these sources on this card."""
        path = self.folder / "gpu-check.json"
        found = Ledger(path, self.identity())
        if found.summary.get("passed") is not True:
            why = "is of other sources or another card" if found.replaced else "does not say so"
            raise RefusalError(
                f"no speed without equality: run `--suite gpu-check` with the same --out first ({path} {why})"
            )

    def run(self, ledger: Ledger, work: Iterable[tuple[str, Work]]) -> list[str]:
        """Do the cells that the ledger lacks, in order, while there is time; returns the names of those left."""
        left: list[str] = []
        slowest, stopped = 0.0 if self.dry else _FIRST_CELL_SECONDS, False
        for name, do in work:
            if name in ledger.cells:
                continue
            stopped = stopped or self.left() < slowest * _MARGIN
            if stopped:
                left.append(name)
                continue
            begun = time.monotonic()
            ledger.add(name, self._attempt(name, do))
            took = time.monotonic() - begun
            slowest = took if slowest == _FIRST_CELL_SECONDS else max(slowest, took)
            stopped = self._is_broken()
        if left:
            self.say(f"{len(left)} cells left ({', '.join(left[:3])} ...): the same call goes on")
        return left

    def _attempt(self, name: str, do: Work) -> dict[str, Any]:
        self.say(f"{time.monotonic() - self.started:6.1f} s  {name}")
        try:
            return do()
        except Exception as error:  # noqa: BLE001 - one kernel that fails must not hide what the others do
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
            self.say(f"          {reason}")
            return {"error": reason}

    def _is_broken(self) -> bool:
        """Whether the CUDA context is lost, as after an illegal access: everything after it would fail."""
        if self.device.type != "cuda":
            return False
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError as error:
            self.say(
                f"the card's context is lost, a new call goes on: {str(error).splitlines()[0]}"
            )
            return True
        return False

    def close(self, ledger: Ledger, summary: dict[str, Any]) -> None:
        """Write the summary and the circumstances."""
        ledger.close({"dry": self.dry, **summary}, circumstances())


def begin(folder: Path | None, *, dry: bool, seconds: float, started: float | None) -> Session:
    """A session on the first card, or a dry one. Raises RefusalError where there is no card."""
    if not dry and not torch.cuda.is_available():
        raise RefusalError(
            "no CUDA device that torch can see: GPU suites measure nothing without one; --dry-run runs their code on "
            "the CPU in Triton's interpreter"
        )
    if dry != (os.environ.get("TRITON_INTERPRET") == "1"):
        raise RefusalError(
            f"TRITON_INTERPRET must be {'1' if dry else 'unset'} before triton is imported"
        )
    session = Session(
        folder=folder or Path(),
        device=torch.device("cpu" if dry else "cuda:0"),
        dry=dry,
        seconds=seconds,
        started=time.monotonic() if started is None else started,
    )
    if not dry:
        # a kernel that never ends cannot be asked to: the process ends, with what the ledger holds
        faulthandler.dump_traceback_later(max(session.left(), 0.0) + _GRACE_SECONDS, exit=True)
    if folder is None:
        session.folder = ROOT / "benchmarks" / "results" / session.card
    return session


def card_slug(name: str) -> str:
    """ "NVIDIA H200" -> "nvidia-h200"."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def source_hash() -> str:
    """16 hexadecimal digits of everything that computes or checks: code, and tuned tiles."""
    digest = hashlib.sha256()
    paths = [p for part in _SOURCES for s in ("*.py", "*.json") for p in (ROOT / part).rglob(s)]
    paths += [path for name in _CHECKING for path in (ROOT / "benchmarks").glob(name)]
    for path in sorted(paths):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
