"""When and how a report came about, and what on the machine speaks against its figures."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qvit import __version__, machine

# Cores' worth of work that somebody else does, of each core: more, and times are no longer this program's.
_BUSY = 0.25
_LISTENED = 0.3  # seconds
_VARYING = 0.10


def describe_run(device: str) -> dict[str, Any]:
    """`created`, `command`, `commit`, the `versions` that a time depends on, the `gpu` where it is one, and the
    `machine` around it.
    """
    card, index = None, device.partition(":")[2]
    if device.startswith("cuda"):
        card = machine.describe_card(int(index or 0))
    described = machine.describe_machine()
    driver = {"cuda": described["cuda"], "driver": card["driver"] if card else None}
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["qvit", *sys.argv[1:]]),
        "commit": machine.source_commit(),
        "versions": {"qvit": __version__} | machine.package_versions() | driver,
        "gpu": card,
        "machine": described,
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


def warn_of_variation(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence about the rows of a report whose times vary much from call to call, if there are any."""
    found = {
        f"{row['variant']} at batch {row['batch']}": row["latency_ms"]["std"]
        / row["latency_ms"]["mean"]
        for row in rows
    }
    varying = [name for name, share in found.items() if share > _VARYING]
    if not varying:
        return []
    most = max(varying, key=lambda name: found[name])
    return [
        f"the times of {len(varying)} of {len(rows)} rows vary by more than {100 * _VARYING:.0f} % from call to call "
        f"(standard deviation over mean), most those of {most}: {100 * found[most]:.0f} %. Something else was at work, "
        "or a clock that is not fixed"
    ]


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
