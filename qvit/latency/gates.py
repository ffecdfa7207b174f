"""Bounds that a user set on a report, for CI."""

from collections.abc import Iterator, Mapping
from typing import Any

from qvit.errors import GateError
from qvit.kept import BEST_FLOAT, is_own
from qvit.latency.comparison import name_slower


def find_missed_gate(
    found: Mapping[str, Any],
    *,
    fail_slower: float | None = None,
    min_speedup: float | None = None,
) -> GateError | None:
    """The bound that a report misses, None where it meets all. A bound that nothing was held against is missed.

    Args:
        found: A report; with `against` from `compare_reports` where `fail_slower` is given.
        fail_slower: The share by which one of the folder's own rows may be slower than in the earlier report: missed
            where the whole interval is beyond it, or the value where there are too few rounds for one, or where that
            report lacks the row.
        min_speedup: What every one of its rows must reach against the fastest float model.
    """
    missed = []
    if min_speedup is not None:
        missed.append(_find_too_slow(found["rows"], min_speedup))
    if fail_slower is not None:
        missed.append(_find_slower(found["rows"], found["against"], fail_slower))
    return next((GateError(f"gate not met: {text}") for text in missed if text is not None), None)


def _own(rows: Any) -> Iterator[Mapping[str, Any]]:
    return (row for row in rows if is_own(row["variant"]))


def _find_too_slow(rows: Any, least: float) -> str | None:
    own = list(_own(rows))
    if not own:
        return "--min-speedup is a bound on a quantized folder, and none was timed"
    for row in own:
        ratio = row["speedup_vs"].get(BEST_FLOAT)
        if ratio is None:
            return (
                "--min-speedup needs the fastest float model beside the folder, eager and compiled, and "
                f"at batch {row['batch']} it was not timed so"
            )
        if ratio["ratio"] < least:
            return (
                f"{row['variant']} at batch {row['batch']} is {ratio['ratio']:.2f} times as fast as the fastest float "
                f"model, below --min-speedup {least:g}"
            )
    return None


def _find_slower(rows: Any, against: Mapping[str, Any], most: float) -> str | None:
    own = list(_own(against["rows"]))
    if not own:
        return "--fail-slower: the earlier report has no variant and batch size of this folder in common with this one"
    compared = {(row["variant"], row["batch"]) for row in own}
    for row in _own(rows):
        if (row["variant"], row["batch"]) not in compared:
            return (
                f"--fail-slower: the earlier report has no {row['variant']} at batch {row['batch']} to hold this one's "
                "against; make it again with the same --batch and --backend"
            )
    for row in own:
        if (row["slower"] if row["low"] is None else row["low"]) <= most:
            continue
        sure = "too few rounds for an interval"
        if row["low"] is not None:
            sure = f"95 % interval {100 * row['low']:.1f} to {100 * row['high']:.1f}"
        layers = name_slower(against, row["variant"], row["batch"])
        where = f"; the layers that became slower: {', '.join(layers)}" if layers else ""
        return (
            f"{row['variant']} at batch {row['batch']} is {100 * row['slower']:.1f} % slower than before ({sure}), "
            f"more than --fail-slower {100 * most:g}%{where}"
        )
    return None
