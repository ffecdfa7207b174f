"""Kernels compiled by other processes before they are needed, into Triton's cache on disk.

A check or a tuner launches hundreds of kernels once, and each takes seconds of one core to compile.
"""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from qvit.machine import usable_cores

_MOST_WORKERS = 12  # each holds a CUDA context of half a gigabyte
_RESERVED_CORES = 2  # for the process that waits, and the driver

# Work and the arguments of each job, to what becomes of the jobs.
Ahead = Callable[[Callable[..., object], Iterable[tuple[Any, ...]]], list["Future[object]"]]


def worker_count(device: str) -> int:
    """0 where nothing is compiled: the interpreter of a dry run."""
    return 0 if device == "cpu" else max(1, min(_MOST_WORKERS, usable_cores() - _RESERVED_CORES))


@contextmanager
def compiling_ahead(workers: int) -> Iterator[Ahead]:
    """Processes that do jobs, in order, while this one goes on; at the end of the block the rest is dropped.

    What fails there fails again where it matters: nobody need look at the futures. Without workers nothing is done.
    """
    if not workers:
        yield lambda work, jobs: []
        return
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        yield lambda work, jobs: [pool.submit(work, *job) for job in jobs]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
