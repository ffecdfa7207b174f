"""What this machine reaches: bytes a second of copies, operations a second of matrix products. Measured once, and kept.

They are what floors are made of: no step can take less than its bytes at the rate of a copy of that size, nor less than
its operations at the rate of a large product, in int8 or in float, whichever is faster: where torch has no fast int8
product, kernels of our own are held against the float one. The fastest of many calls counts, so that a busy moment does
not.
"""

import json
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from qvit import machine
from qvit.latency.circumstances import is_busy

_COPIES = {"cpu": (2**16, 2**19, 2**22, 2**26), "cuda": (2**22, 2**26, 2**30)}
_SIDES = {"cpu": 1024, "cuda": 8192}
_SECONDS = 0.25  # of calls a rate
_QUEUED = 50

BYTES, OPERATIONS = "bytes", "operations"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Attributes:
    copies: (bytes read and written, bytes a second) of copies of growing size.
    operations: What a product is made in -> multiplications and additions a second; "int8" and "float".
    created: When.
    """

    copies: tuple[tuple[int, float], ...]
    operations: Mapping[str, float]
    created: str

    def floor(self, moved: int, operations: int, computes_in: str | None) -> tuple[float, str]:
        """The least seconds for so many bytes and operations, and which of "bytes" and "operations" take them."""
        sizes = [size for size, _ in self.copies]
        # of the next smaller copy, which a cache holds more of
        by_bytes = moved / self.copies[max(0, bisect_right(sizes, moved) - 1)][1]
        rates = self.operations
        reached = rates["float"] if computes_in == "float" else max(rates.values())
        by_operations = operations / reached
        return max((by_bytes, BYTES), (by_operations, OPERATIONS))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "copies": [list(copy) for copy in self.copies],
            "operations": dict(self.operations),
            "created": self.created,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of to_dict; raises KeyError, TypeError or ValueError for anything else."""
        copies = tuple((int(size), float(rate)) for size, rate in values["copies"])
        operations = {name: float(values["operations"][name]) for name in ("int8", "float")}
        return cls(copies=copies, operations=operations, created=str(values["created"]))


def find_rates(device: str, folder: Path | None = None) -> Rates:
    """Those kept in `folder` (None: the user's cache) for this machine, torch and number of threads, or newly measured
    ones, which are kept from then on unless the machine is busy.
    """
    place = folder or machine.cache_folder()
    path = None if place is None else place / f"rates-{machine.name_device(device)}.json"
    if path is not None:
        try:
            return Rates.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none yet, or not ours to read
    rates = measure_rates(device)
    if path is not None and not is_busy():  # or every later floor would be that of a busy moment
        _keep(path, rates)
    return rates


def measure_rates(device: str) -> Rates:
    """A second or two of copies and products, on random data."""
    kind = device.partition(":")[0]
    fastest = _fastest_queued if kind == "cuda" else _fastest
    copies = []
    for size in _COPIES[kind]:
        source = torch.empty(size // 2, dtype=torch.uint8, device=device).random_()
        target = torch.empty_like(source)
        copies.append((size, size / fastest(lambda s=source, t=target: t.copy_(s))))
    n = _SIDES[kind]
    a, b = (torch.randint(-127, 128, (n, n), dtype=torch.int8, device=device) for _ in range(2))
    half = torch.bfloat16 if kind == "cuda" else torch.float32
    x, y = (torch.randn(n, n, dtype=half, device=device) for _ in range(2))
    products: dict[str, Callable[[], object]] = {
        "int8": lambda: torch.ops.aten._int_mm.default(a, b.t()),
        "float": lambda: torch.mm(x, y.t()),
    }
    operations = {name: 2 * n**3 / fastest(call) for name, call in products.items()}
    return Rates(
        copies=tuple(copies), operations=operations, created=time.strftime("%Y-%m-%d %H:%M:%S")
    )


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest call within a quarter of a second."""
    call()
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < _SECONDS:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def _fastest_queued(call: Callable[[], object]) -> float:
    """The same on a card, of calls that wait in its queue: each alone would take as long as launching it."""
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < _SECONDS:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        call()  # the queue is not empty when the first event comes
        start.record()
        for _ in range(_QUEUED):
            call()
        end.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(end) / 1000 / _QUEUED)
    return best


def _keep(path: Path, rates: Rates) -> None:
    from qvit.deployment.checkpoint import write_json

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(path, rates.to_dict())
    except OSError:
        pass  # measured again the next time
