"""The one stopwatch: several callables timed in turns, in one process, on the same machine.

Clocks, other processes and thermal limits drift over seconds. Timing one variant after the other
turns that drift into a difference between variants; here every round calls all of them, and a ratio
compares calls of the same round.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

# One turn lasts about this long: short enough that drift is shared, long enough that a call of 0.1
# ms is repeated.
TURN_SECONDS = 0.2
MAX_CALLS_A_TURN = 100


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one callable took: milliseconds of every call, by round."""

    rounds: tuple[tuple[float, ...], ...]

    @property
    def samples(self) -> tuple[float, ...]:
        """All calls in the order they were made, in ms."""
        return tuple(sample for turn in self.rounds for sample in turn)

    def percentile(self, q: float) -> float:
        """The q-th percentile (0 to 100) of all calls in ms, linear between neighbours."""
        ordered = sorted(self.samples)
        position = (len(ordered) - 1) * q / 100
        below = int(position)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (ordered[above] - ordered[below]) * (position - below)

    @property
    def median(self) -> float:
        """The median of all calls in ms."""
        return self.percentile(50)

    def speedup_over(self, other: "Timing") -> float:
        """How many times faster than `other`: the median over rounds of the ratio of the rounds'
        medians.
        """
        pairs = zip(other.rounds, self.rounds, strict=True)
        return statistics.median(
            statistics.median(theirs) / statistics.median(ours) for theirs, ours in pairs
        )


def measure(
    callables: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 10,
    warmup: int = 3,
    device: str = "cpu",
    after_round: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Times the callables in alternating rounds.

    In every round each callable has one turn: one call that is not counted (it fetches the weights
    that the others have pushed out of the cache), then as many counted calls as fit `TURN_SECONDS`,
    at least one. The order rotates from round to round, so no callable always follows the same
    other one.

    Args:
        callables: name -> what to time; called without arguments.
        rounds: how many turns each callable gets.
        warmup: uncounted calls of each before the first round (allocations, compilation).
        device: where the callables work. On "cuda" calls are timed by events on the device, with
            one synchronisation a turn, since waiting after each call would time the wait.
        after_round: called after each round, for progress.

    Returns:
        name -> Timing, in the order given, with the same number of rounds and of calls in each
        round.

    Raises:
        ValueError: no callable, or fewer than one round.
    """
    if not callables:
        raise ValueError("nothing to measure: callables is empty")
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds must be at least 1 and warmup 0, got {rounds} and {warmup}")
    time_turn = _time_turn_cuda if device.startswith("cuda") else _time_turn_cpu
    names = list(callables)
    calls: dict[str, int] = {}
    for name in names:
        for _ in range(warmup):
            callables[name]()
        calls[name] = _calls_a_turn(time_turn(callables[name], 1)[0])
    turns: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    with _without_garbage_collection():
        for index in range(rounds):
            shift = index % len(names)
            for name in names[shift:] + names[:shift]:
                turns[name].append(tuple(time_turn(callables[name], calls[name])))
            if after_round is not None:
                after_round()
    return {name: Timing(tuple(turns[name])) for name in names}


def _calls_a_turn(call_ms: float) -> int:
    fitting = int(TURN_SECONDS * 1000 / max(call_ms, 1e-6))
    return max(1, min(fitting, MAX_CALLS_A_TURN))


def _time_turn_cpu(call: Callable[[], object], count: int) -> list[float]:
    call()
    samples = []
    for _ in range(count):
        start = time.perf_counter_ns()
        call()
        samples.append((time.perf_counter_ns() - start) / 1e6)
    return samples


def _time_turn_cuda(call: Callable[[], object], count: int) -> list[float]:
    import torch

    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(count)
    ]
    call()
    torch.cuda.synchronize()
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    # A collection takes milliseconds once torch is loaded and would land in one variant's sample.
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
