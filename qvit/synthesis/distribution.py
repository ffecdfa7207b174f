"""Which batches are this process's: torchrun, SLURM and MPI through timm, or a share named by hand."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

from qvit.errors import UsageError

# What torchrun, Open MPI, Intel's MPI and SLURM call the number of processes on a machine.
_HERE = (
    "LOCAL_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "SLURM_TASKS_PER_NODE",
)


@dataclass(frozen=True, slots=True)
class Place:
    """This process among all: `rank` of `count`, and the device it computes on.

    Attributes:
        meet: Waits until all processes are here; does nothing where they were not started together.
    """

    rank: int
    count: int
    device: str
    meet: Callable[[], Any] = field(default=lambda: None, compare=False, repr=False)

    def mine(self, batches: Sequence[int]) -> list[int]:
        """Every count-th batch, from the rank on: all processes finish at about the same time."""
        return list(batches[self.rank :: self.count])


def processes_here() -> int:
    """How many processes of a distributed run are on this machine, as its launcher says; 1 without one."""
    from timm.utils.distributed import is_distributed_env

    if is_distributed_env():
        for name in _HERE:
            # SLURM counts machines after a bracket: "2(x3),1"
            match = re.match(r"\d+", os.environ.get(name, ""))
            if match:
                return max(1, int(match[0]))
    return 1


@contextmanager
def joined(device: str, shard: tuple[int, int] | None) -> Iterator[Place]:
    """Take a place among the processes that torchrun, SLURM or MPI started; on leaving, wait for the others.

    Nothing is exchanged: batches depend on their own seeds only, and files are how the processes meet.

    Args:
        device: "cpu" or "cuda"; with several processes a machine, each gets a GPU of its own.
        shard: (i, N), the i-th of N shares, counted from 0, without any of the above.

    Raises:
        UsageError: An impossible share, or a share inside a distributed run.
    """
    from timm.utils.distributed import init_distributed_device_so, is_distributed_env

    if shard is not None:
        index, count = shard
        if count < 1 or not 0 <= index < count:
            raise UsageError(
                f"--shard {index}/{count}: shares are counted from 0, so the last of N is N-1/N"
            )
        if is_distributed_env():
            raise UsageError("--shard and torchrun both divide the work; use one of them")
        yield Place(index, count, device)
        return
    found: dict[str, Any] = init_distributed_device_so(device)
    if not found["distributed"]:
        yield Place(0, 1, device)
        return
    from torch import distributed

    try:
        # Shares may take hours more or less than each other; the default would give up after 30 minutes.
        everyone: Any = distributed.new_group(backend="gloo", timeout=timedelta(days=30))
        meet = partial(distributed.barrier, everyone)
        yield Place(found["global_rank"], found["world_size"], found["device"], meet)
        meet()
    finally:
        distributed.destroy_process_group()
