"""Candidates timed in turns on a card, cold by `do_bench` and warm by CUDA graph replay; and the card's roofline.

Cold: the L2 cache is flushed before each call, and the call comes from Python, so that a short kernel's figure holds
its launch. Warm: calls in one CUDA graph, operands in the cache where they fit, as between the kernels of a model.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qvit.timing import Timing, measure
from qvit_kernels.split_memory import own_split_memory

Call = Callable[[], object]

ROUNDS = 3
_COLD_MS = 8  # of calls a round and candidate
_GRAPH_MS = 0.4  # of calls in a graph, so that the gap between two replays does not count
_MOST_IN_GRAPH = 50


@dataclass(frozen=True, slots=True)
class Measured:
    """One candidate. Times in ms.

    Attributes:
        cold: None in a dry run.
        graph: None where the call cannot be captured; why says so then.
    """

    cold: Timing | None
    graph: Timing | None
    why: str | None = None

    def row(self) -> dict[str, Any]:
        """p20, p50 and p80 of both, for JSON."""
        return {
            "cold_ms": _spread(self.cold),
            "graph_ms": _spread(self.graph),
            **({"no_graph": self.why} if self.why else {}),
        }

    @property
    def best(self) -> Timing:
        """By graph where there is one."""
        timing = self.graph or self.cold
        assert timing is not None
        return timing


def _spread(timing: Timing | None) -> dict[str, float] | None:
    if timing is None:
        return None
    return {f"p{q}": float(f"{timing.percentile(q):.4g}") for q in (50, 20, 80)}


def time_candidates(
    calls: Mapping[str, Call], device: torch.device, *, dry: bool, rounds: int = ROUNDS
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Time the candidates; also which could not run at all, and why."""
    working: dict[str, Call] = {}
    left_out: dict[str, str] = {}
    for name, call in calls.items():
        try:
            call()
            _synchronize(device)
            working[name] = call
        except Exception as error:  # noqa: BLE001 - a rival that fails here is a finding, not the end
            left_out[name] = first_line(error)
    if dry:
        return {name: _time_once(call) for name, call in working.items()}, left_out
    graphs, counts, reasons = _capture_all(working)
    cold = _time_cold(working, rounds)
    warm = measure(graphs, rounds=rounds, warmup=2, device="cuda") if graphs else {}
    found = {}
    for name in working:
        timing = _divide(warm[name], counts[name]) if name in warm else None
        found[name] = Measured(cold[name], timing, reasons.get(name))
    return found, left_out


def time_passes(
    whole: Mapping[str, Call],
    graphable: Mapping[str, Call],
    device: torch.device,
    *,
    dry: bool,
    rounds: int = ROUNDS,
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time whole models in turns, called from Python; `graphable` ones also in a CUDA graph, as "<name> graph".

    Also which could not run or be captured, and why.
    """
    calls = {**whole, **graphable}
    left_out: dict[str, str] = {}
    working: dict[str, Call] = {}
    for name, call in calls.items():
        try:
            call()
            _synchronize(device)
            working[name] = call
        except Exception as error:  # noqa: BLE001 - as in time_candidates
            left_out[name] = first_line(error)
    if dry:
        return {name: _time_once(call).best for name, call in working.items()}, left_out
    graphs, counts, reasons = _capture_all({n: c for n, c in working.items() if n in graphable})
    left_out |= {f"{name} graph": reason for name, reason in reasons.items()}
    working |= {f"{name} graph": replay for name, replay in graphs.items()}
    times = {f"{name} graph": count for name, count in counts.items()}
    taken = measure(working, rounds=rounds, warmup=2, device="cuda")
    return {name: _divide(timing, times.get(name, 1)) for name, timing in taken.items()}, left_out


def _time_once(call: Call) -> Measured:
    begun = time.perf_counter()
    call()
    return Measured(None, Timing((((time.perf_counter() - begun) * 1000,),)))


def _time_cold(calls: Mapping[str, Call], rounds: int) -> dict[str, Timing]:
    import triton.testing

    turns: dict[str, list[tuple[float, ...]]] = {name: [] for name in calls}
    names = list(calls)
    for index in range(rounds):
        shift = index % len(names) if names else 0
        for name in names[shift:] + names[:shift]:
            samples: Any = triton.testing.do_bench(
                calls[name], warmup=2, rep=_COLD_MS, return_mode="all"
            )
            turns[name].append(tuple(samples))
    return {name: Timing(tuple(turn)) for name, turn in turns.items()}


def _capture_all(
    calls: Mapping[str, Call],
) -> tuple[dict[str, Call], dict[str, int], dict[str, str]]:
    graphs, counts, reasons = {}, {}, {}
    for name, call in calls.items():
        try:
            graphs[name], counts[name] = capture(call)
        except Exception as error:  # noqa: BLE001 - what cannot be captured is timed cold only
            reasons[name] = first_line(error)
            torch.cuda.synchronize()
    return graphs, counts, reasons


def capture(call: Call) -> tuple[Call, int]:
    """A CUDA graph of several calls: its replay, and how many calls that is."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        for _ in range(3):
            call()
        ended.record()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    call_ms = begun.elapsed_time(ended) / 3
    count = max(1, min(_MOST_IN_GRAPH, math.ceil(_GRAPH_MS / max(call_ms, 1e-6))))
    graph = torch.cuda.CUDAGraph()
    with own_split_memory(), torch.cuda.graph(graph):
        for _ in range(count):
            call()
    return graph.replay, count


def _divide(timing: Timing, count: int) -> Timing:
    return Timing(tuple(tuple(sample / count for sample in turn) for turn in timing.rounds))


def first_line(error: Exception) -> str:
    """Type and first line of an error."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True, slots=True)
class Roofline:
    """What this card was seen to do: bytes a second of a copy, operations a second of an int8 product."""

    bytes_a_second: float
    operations_a_second: float

    def floor_ms(self, bytes_moved: int, operations: int) -> float:
        """The least time that so many bytes and operations take."""
        seconds = max(bytes_moved / self.bytes_a_second, operations / self.operations_a_second)
        return 1000 * seconds


def measure_roofline(device: torch.device, *, dry: bool) -> dict[str, Any]:
    """A copy of 1 GiB, bytes read and written; `torch._int_mm` and bf16 `torch.mm` of 8192^3 on random data."""
    size, n = (2**16, 64) if dry else (2**30, 8192)
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    a, b = (torch.randint(-127, 128, (n, n), dtype=torch.int8, device=device) for _ in range(2))
    x, y = (torch.randn(n, n, dtype=torch.bfloat16, device=device) for _ in range(2))
    calls: dict[str, tuple[Call, int]] = {
        "copy_bytes_a_second": (lambda: target.copy_(source), 2 * size),
        "int8_operations_a_second": (lambda: torch.ops.aten._int_mm.default(a, b.t()), 2 * n**3),
        "bf16_operations_a_second": (lambda: torch.mm(x, y.t()), 2 * n**3),
    }
    timed = {name: _median_ms(call, device) for name, (call, _) in calls.items()}
    return {name: amount / (timed[name] / 1000) for name, (_, amount) in calls.items()}


def _median_ms(call: Call, device: torch.device) -> float:
    rounds = measure({"it": call}, rounds=1, warmup=1, device=device.type)
    return statistics.median(rounds["it"].samples)
