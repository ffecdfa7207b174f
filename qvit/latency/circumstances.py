"""When and how a report came about, and what on the machine speaks against its figures."""

import os
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

from qvit import __version__, machine

# Of the cores, busy on average over the last minute: more, and somebody else computes.
_BUSY = 0.5


def describe_run() -> dict[str, Any]:
    """`created`, `command`, and the `versions` that a time depends on."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["qvit", *sys.argv[1:]]),
        "versions": {"qvit": __version__} | machine.package_versions(),
        "gpu": machine.describe_clocks(),
    }


def find_warnings(device: str) -> list[str]:
    """Sentences about what may disturb the measurement that is about to begin."""
    found = []
    if is_busy():
        found.append(
            f"the machine was busy when this began: a load of {_load():.1f} on {machine.usable_cores()} cores. Times "
            "are too long, and ratios less sure"
        )
    if device.startswith("cuda"):
        others = _others_on_card()
        if others:
            found.append(f"{others} other process(es) use the card: times are too long")
    return found


def is_busy() -> bool:
    """Whether somebody else has been computing here for the last minute."""
    return _load() > _BUSY * machine.usable_cores()


def _load() -> float:
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return 0.0  # not said


def _others_on_card() -> int:
    command = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    pids = {line.strip() for line in done.stdout.splitlines() if line.strip().isdigit()}
    return len(pids - {str(os.getpid())})
