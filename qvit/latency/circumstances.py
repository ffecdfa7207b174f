"""When and how a report came about, and what on the machine speaks against its figures."""

import os
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qvit import __version__, machine

# Cores' worth of work that somebody else does, of each core: more, and times are no longer this program's.
_BUSY = 0.25
_LISTENED = 0.3  # seconds


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
    share = busy_share()
    if share > _BUSY:
        found.append(
            f"the machine was busy when this began: others had {100 * share:.0f} % of the cores. Times are too long, "
            "and ratios less sure"
        )
    if device.startswith("cuda"):
        others = _others_on_card()
        if others:
            found.append(f"{others} other process(es) use the card: times are too long")
    return found


def is_busy() -> bool:
    """Whether somebody else computes here now."""
    return busy_share() > _BUSY


def busy_share(stat: Path = Path("/proc/stat")) -> float:
    """The share of this process's cores that others have, while it sleeps for a moment; 0 where the system does not
    say. The load of the last minute would count what this program, or its run before, has done itself.
    """
    before, own = _core_ticks(stat), time.process_time()
    time.sleep(_LISTENED)
    after, own = _core_ticks(stat), time.process_time() - own
    busy, whole = (sum(new[i] - before[name][i] for name, new in after.items()) for i in (0, 1))
    return max(0.0, busy - own * os.sysconf("SC_CLK_TCK")) / whole if whole else 0.0


def _core_ticks(stat: Path) -> dict[str, tuple[int, int]]:
    """Core -> (ticks that it was not idle, all its ticks), of the cores that this process may use."""
    try:
        cores = {f"cpu{index}" for index in os.sched_getaffinity(0)}
        lines = [line.split() for line in stat.read_text().splitlines()]
    except (OSError, AttributeError):
        return {}  # not Linux
    found = {}
    for name, *fields in lines:
        if name in cores:
            ticks = [int(field) for field in fields[:8]]  # those of guests are in the first ones
            found[name] = sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # idle, waiting for a disk
    return found


def _others_on_card() -> int:
    command = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    pids = {line.strip() for line in done.stdout.splitlines() if line.strip().isdigit()}
    return len(pids - {str(os.getpid())})
