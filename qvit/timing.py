"""The one stopwatch: several callables timed in turns, in one process, on the same machine.

Clocks, other processes and thermal limits drift over seconds. Timing one variant after the other
turns that drift into a difference between variants; here every round calls all of them, and a ratio
compares calls of the same round.
"""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

# The counted calls of a turn last about this long: short enough that drift is shared, long enough that a call of 0.1
# ms is repeated. On a machine that slows down by half for seconds, intervals of 110 s of turns of
# 0.03 s were 1.0 to 2.9 % wide, those of 150 s of turns of 0.2 s 2.6 to 6.5 %.
TURN_SECONDS = 0.03
MAX_CALLS_A_TURN = 100
# Calls of a turn that are not counted, for each that is, at least one: the others have pushed the weights out of the
# caches. In turns of a ViT of 4 ms, the second call still took a quarter longer than the seventh, the third 4 %.
COLD_SHARE = 1 / 3
# How many rounds fit this time, within these bounds, is measured where nobody says how many.
MEASURE_SECONDS = 40.0
FEWEST_ROUNDS, MOST_ROUNDS = 12, 400
WARMUP = 3  # calls of each that are not counted, before the first round
# Before a turn on a CPU this process has to have been idle for `_QUIET_SECONDS`, or `_PATIENCE` to have passed: threads
# wait for more work by spinning, OnnxRuntime's for 50 ms and torch's for 20, and take a core from whoever comes next:
# the compiled path took 31, 30 and 21 ms for its first calls after OnnxRuntime, and 19.5 otherwise.
_QUIET_SECONDS, _PATIENCE = 0.01, 0.2
_IDLE_SHARE = 0.2  # of a core


# A ratio is steady where another run may be expected within `STEADY` of it. Its interval may then be half as wide: it
# knows of one process, and from process to process (where memory lies, what a compiler chose) ratios with intervals of
# 1 to 3 % moved by 1 to 5 %.
STEADY = 0.05
STEADY_SPREAD = STEADY / 2


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster, or slower, something is, and the 95 % interval of that; None where too few rounds were
    timed to have one.
    """

    value: float
    interval: tuple[float, float] | None

    @property
    def low(self) -> float | None:
        """The lower end of the interval."""
        return None if self.interval is None else self.interval[0]

    @property
    def high(self) -> float | None:
        """The upper end of the interval."""
        return None if self.interval is None else self.interval[1]

    @property
    def spread(self) -> float | None:
        """Width of the interval as a share of the value."""
        return None if self.interval is None else (self.interval[1] - self.interval[0]) / self.value

    @property
    def steady(self) -> bool:
        """Whether another run on the same machine may be expected within 5 %."""
        return self.spread is not None and self.spread <= STEADY_SPREAD


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

    @property
    def medians(self) -> tuple[float, ...]:
        """The median of each round in ms."""
        return tuple(statistics.median(turn) for turn in self.rounds)

    @property
    def mean(self) -> float:
        """The mean of all calls in ms."""
        return statistics.fmean(self.samples)

    @property
    def mean_interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean in ms: Student's, over the means of the rounds, since calls of a round share what
        the machine does meanwhile. None where there is one round.
        """
        means = [statistics.fmean(turn) for turn in self.rounds]
        if len(means) < 2:
            return None
        half = _student(len(means) - 1) * statistics.stdev(means) / math.sqrt(len(means))
        return self.mean - half, self.mean + half

    def speedup_over(self, other: "Timing") -> float:
        """How many times faster than `other`: the median over rounds of the ratio of the rounds'
        medians.
        """
        return self.ratio_to(other).value

    def ratio_to(self, other: "Timing") -> Ratio:
        """`speedup_over` with its interval; raises ValueError for timings of different runs."""
        pairs = zip(other.medians, self.medians, strict=True)
        return median_ratio([theirs / ours for theirs, ours in pairs])


def median_ratio(ratios: Sequence[float]) -> Ratio:
    """The median of ratios, one a round, and the interval of order statistics: whatever the distribution of a round's
    ratio, the k-th smallest and the k-th largest enclose its median as often. Below six rounds not even the extremes
    do.
    """
    ordered = sorted(ratios)
    outside = _outside(len(ordered))
    interval = None if outside is None else (ordered[outside], ordered[-1 - outside])
    return Ratio(statistics.median(ordered), interval)


def _outside(count: int) -> int | None:
    """How many of `count` values lie on either side of the narrowest interval that has their median 95 times in 100;
    None where none has.
    """
    tail, outside = 0.0, None
    for k in range(count // 2):
        tail += math.comb(count, k) / 2**count
        if 2 * tail > 0.05:
            break
        outside = k
    return outside


def ratio_between(values: Sequence[float], others: Sequence[float]) -> Ratio:
    """How many times as large positive values are as others that were taken at another time, so in no pairs.

    The median of all quotients, which is Hodges and Lehmann's estimate on a logarithmic axis, and Mann and Whitney's
    interval of it by the normal approximation: three values on each side have none.
    """
    quotients = sorted(value / other for value in values for other in others)
    n, m = len(values), len(others)
    z = statistics.NormalDist().inv_cdf(0.975)
    outside = int(n * m / 2 - z * math.sqrt(n * m * (n + m + 1) / 12))
    interval = (quotients[outside - 1], quotients[-outside]) if outside >= 1 else None
    return Ratio(statistics.median(quotients), interval)


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by its expansion in 1 / freedom, which is off by 1 % at three."""
    if freedom < 3:
        return (12.706, 4.303)[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom ** (i + 1) for i, term in enumerate(terms))


def measure(
    callables: Mapping[str, Callable[[], object]],
    *,
    rounds: int | None = 10,
    warmup: int = WARMUP,
    device: str = "cpu",
    waiting: bool = False,
    turn_seconds: float | None = None,
    after_round: Callable[[int], object] | None = None,
) -> dict[str, Timing]:
    """Times the callables in alternating rounds.

    In every round each callable has one turn: calls that are not counted (they fetch the weights that the others have
    pushed out of the cache; `COLD_SHARE`), then as many counted calls as fit `TURN_SECONDS`, at least one. The order is
    drawn anew for every round (and alike in every run), so no callable always follows the same other one; on a CPU a
    turn begins when the threads of the one before have stopped waiting for work.

    Args:
        callables: name -> what to time; called without arguments.
        rounds: how many turns each callable gets; None: as many as fit `MEASURE_SECONDS`, 12 at least and 400 at most.
        warmup: uncounted calls of each before the first round (allocations, compilation).
        device: where the callables work. On "cuda" calls are timed by events on the device, with
            one synchronisation a turn, since waiting after each call would time the wait.
        waiting: on "cuda", read the host's clock around a call and the wait for its result instead:
            what somebody who needs each answer at once waits. On a CPU the two are the same.
        turn_seconds: how long the counted calls of a turn last about; None: `TURN_SECONDS`.
        after_round: called after each round, with how many there will be, for progress.

    Returns:
        name -> Timing, in the order given, with the same number of rounds and of calls in each
        round.

    Raises:
        ValueError: no callable, or fewer than one round.
    """
    if not callables:
        raise ValueError("nothing to measure: callables is empty")
    if (rounds is not None and rounds < 1) or warmup < 0:
        raise ValueError(f"rounds must be at least 1 and warmup 0, got {rounds} and {warmup}")
    time_turn = _time_turn_cpu
    on_card = device.startswith("cuda")
    if on_card:
        time_turn = _time_turn_waiting if waiting else _time_turn_cuda
    names = list(callables)
    settles = len(names) > 1 and not on_card
    turn = TURN_SECONDS if turn_seconds is None else turn_seconds
    calls: dict[str, int] = {}
    round_seconds = 0.0
    for name in names:
        if settles:
            round_seconds += _wait_for_threads()
        for _ in range(warmup):
            callables[name]()
        call_ms = time_turn(callables[name], 1)[0]
        calls[name] = _calls_a_turn(call_ms, turn)
        round_seconds += (calls[name] + _cold_calls(calls[name])) * call_ms / 1000
    if rounds is None:
        fitting = int(MEASURE_SECONDS / max(round_seconds, 1e-9))
        rounds = max(FEWEST_ROUNDS, min(fitting, MOST_ROUNDS))
    turns: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    with _without_garbage_collection():
        for index in range(rounds):
            # seeded: what it draws is an order, and the same one in every run
            for name in random.Random(index).sample(names, len(names)):
                if settles:
                    _wait_for_threads()
                turns[name].append(tuple(time_turn(callables[name], calls[name])))
            if after_round is not None:
                after_round(rounds)
    return {name: Timing(tuple(turns[name])) for name in names}


def _calls_a_turn(call_ms: float, turn_seconds: float) -> int:
    fitting = int(turn_seconds * 1000 / max(call_ms, 1e-6))
    return max(1, min(fitting, MAX_CALLS_A_TURN))


def _cold_calls(count: int) -> int:
    return math.ceil(count * COLD_SHARE)


def _wait_for_threads() -> float:
    """Return when no thread of this process works, or spins, any more; the seconds that it took."""
    first = begun = time.monotonic()
    while begun - first < _PATIENCE:
        worked = time.process_time()
        time.sleep(_QUIET_SECONDS)
        now = time.monotonic()
        idle = time.process_time() - worked < _IDLE_SHARE * (now - begun)
        begun = now
        if idle:
            break
    return begun - first


def _time_turn_cpu(call: Callable[[], object], count: int) -> list[float]:
    for _ in range(_cold_calls(count)):
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
    for _ in range(_cold_calls(count)):
        call()
    torch.cuda.synchronize()
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def _time_turn_waiting(call: Callable[[], object], count: int) -> list[float]:
    import torch

    def call_and_wait() -> None:
        call()
        torch.cuda.synchronize()

    torch.cuda.synchronize()
    return _time_turn_cpu(call_and_wait, count)


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
