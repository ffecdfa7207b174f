"""Calls timed in turns: percentiles, the mean with its interval, and ratios paired by round."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qvit import timing
from qvit.kept import BEST_FLOAT, compiled_twin, is_float
from qvit.timing import Ratio, Timing

_PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Taken:
    """One variant at one batch size. `wall`: what a caller waits for; `device`: by the device's own clock, None on a
    CPU, where the two are one.
    """

    wall: Timing
    device: Timing | None = None

    def to_dict(self, batch: int, *, samples: bool = False) -> dict[str, Any]:
        """Fields of a row; `samples`: with the time of every call, round by round."""
        return {
            "iters": len(self.wall.samples),
            "warmup": timing.WARMUP,
            "latency_ms": describe(self.wall),
            "device_ms": None if self.device is None else describe(self.device),
            "images_per_s": batch / self.wall.median * 1000,
            "rounds_ms": list(self.wall.medians),
            "raw_samples": self._list_samples() if samples else None,
        }

    def _list_samples(self) -> list[list[float]]:
        """To a tenth of a microsecond, which is more than a clock tells."""
        return [[round(sample, 4) for sample in turn] for turn in self.wall.rounds]


def measure_calls(
    calls: Mapping[str, Callable[[], object]],
    rounds: int | None,
    device: str,
    after_round: Callable[[int], object],
) -> dict[str, Taken]:
    """Time calls in alternating rounds; on a card twice over, by the host's clock and by the device's, `after_round`
    after each.
    """
    wall = timing.measure(
        calls, rounds=rounds, device=device, waiting=True, after_round=after_round
    )
    if not device.startswith("cuda"):
        return {name: Taken(watch) for name, watch in wall.items()}
    own = timing.measure(calls, rounds=rounds, device=device, after_round=after_round)
    return {name: Taken(watch, own[name]) for name, watch in wall.items()}


def describe(watch: Timing) -> dict[str, Any]:
    """A timing as JSON has it, in ms; `ci95` is the interval of the mean, None for one round."""
    samples = watch.samples
    return {
        "mean": watch.mean,
        "ci95": None if watch.mean_interval is None else list(watch.mean_interval),
        "std": statistics.stdev(samples) if len(samples) > 1 else 0.0,
        "min": min(samples),
        **{f"p{q}": watch.percentile(q) for q in _PERCENTILES},
        "max": max(samples),
    }


def speedups(
    taken: Mapping[str, Taken], variants: Mapping[str, Any]
) -> dict[str, dict[str, dict[str, Any]]]:
    """For every variant: float variant -> how many times faster it is than that one; "best_float" is the fastest.

    Nothing at all where the fastest was not timed compiled, too: against an eager one alone a speed-up says little.
    """
    floats = [name for name in taken if is_float(name)]
    if not floats:
        return {name: {} for name in variants}
    best = min(floats, key=lambda name: taken[name].wall.median)
    if compiled_twin(best) not in floats:
        return {name: {} for name in variants}
    found = {}
    for name in variants:
        ours = taken[name].wall
        ratios = {other: ours.ratio_to(taken[other].wall) for other in floats if other != name}
        if name != best:
            ratios[BEST_FLOAT] = ours.ratio_to(taken[best].wall)
        found[name] = {other: as_dict(ratio) for other, ratio in ratios.items()}
    return found


def as_dict(ratio: Ratio) -> dict[str, Any]:
    """A ratio as JSON has it; below six rounds it has no interval."""
    return {
        "ratio": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "spread": ratio.spread,
        "steady": ratio.steady,
    }
