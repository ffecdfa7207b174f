"""Two reports held against each other, and the bounds that a user set on one."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from qvit.errors import GateError, InputError
from qvit.latency.measuring import BEST
from qvit.latency.variants import FLOAT
from qvit.timing import median_ratio

# A layer is named where it is slower by more than this share, beyond what all layers are.
_NAMED = 0.10


def compare_reports(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """What became slower or faster since an earlier report.

    The machine may be slower altogether, so times are compared with those of the float variants that both reports have:
    `drift` is how many times longer these take now. Without any in common it is 1, and says nothing.

    Returns:
        `same_machine`, `drift` {batch: times}, `rows` [`variant`, `batch`, `slower` (share beyond the drift, negative
        where faster), `low`, `high`, `raw` (share without taking the drift out)], `layers` [the same of layers summed
        over blocks, slowest first, beyond what the layers' median did] and `slower_layers`, names of those that are
        slower by more than a tenth.

    Raises:
        InputError: The earlier report is of another schema.
    """
    if before.get("schema_version") != now["schema_version"]:
        raise InputError(
            f"--against: the report has schema version {before.get('schema_version')!r}, and this qvit writes "
            f"{now['schema_version']}; make it anew with `qvit bench -o`"
        )
    rows, drifts = [], {}
    for batch in dict.fromkeys(row["batch"] for row in now["rows"]):
        pairs = _pairs(now, before, batch)
        floats = [_growth(new, old) for new, old in pairs if new["variant"] in FLOAT]
        drift = statistics.median(statistics.median(growth) for growth in floats) if floats else 1.0
        drifts[str(batch)] = drift
        for new, old in pairs:
            ratio = median_ratio(_growth(new, old))
            rows.append(
                {
                    "variant": new["variant"],
                    "batch": batch,
                    "slower": ratio.value / drift - 1,
                    "low": ratio.low / drift - 1,
                    "high": ratio.high / drift - 1,
                    "raw": ratio.value - 1,
                }
            )
    layers = _compare_layers(now["kinds"], before["kinds"])
    return {
        "same_machine": _machine(now) == _machine(before),
        "drift": drifts,
        "rows": rows,
        "layers": layers,
        "slower_layers": list(
            dict.fromkeys(layer["name"] for layer in layers if layer["slower"] > _NAMED)
        ),
    }


def _pairs(
    now: Mapping[str, Any], before: Mapping[str, Any], batch: int
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    earlier = {row["variant"]: row for row in before["rows"] if row["batch"] == batch}
    return [
        (row, earlier[row["variant"]])
        for row in now["rows"]
        if row["batch"] == batch and row["variant"] in earlier
    ]


def _growth(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[float]:
    """Each round's time now, in medians of the earlier report."""
    base = statistics.median(old["rounds_ms"])
    return [ms / base for ms in new["rounds_ms"]]


def _compare_layers(
    now: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    found = []
    for key in dict.fromkeys(map(_key, now)):
        new, old = (
            {kind["name"]: kind["fastest_ms"] for kind in kinds if _key(kind) == key}
            for kinds in (now, before)
        )
        growth = {name: ms / old[name] for name, ms in new.items() if ms and old.get(name)}
        if not growth:
            continue
        usual = statistics.median(growth.values())
        found += [
            {"variant": key[0], "batch": key[1], "name": name, "slower": times / usual - 1}
            for name, times in growth.items()
        ]
    return sorted(found, key=lambda layer: -layer["slower"])


def _key(kind: Mapping[str, Any]) -> tuple[str, int]:
    return kind["variant"], kind["batch"]


def _machine(report: Mapping[str, Any]) -> tuple[Any, ...]:
    facts = report["machine"]
    names = ("cpu", "cores", "threads", "cpu_features", "gpu", "torch")
    return tuple(str(facts.get(name)) for name in names)


def find_missed_gate(
    found: Mapping[str, Any],
    *,
    fail_slower: float | None = None,
    min_speedup: float | None = None,
) -> GateError | None:
    """The bound that a report misses, None where it meets all.

    Args:
        found: A report; with `against` from `compare_reports` where `fail_slower` is given.
        fail_slower: The share by which one of the folder's own rows may be slower than in the earlier report.
        min_speedup: What every one of its rows must reach against the fastest float model.
    """
    own = [row for row in found["rows"] if row["variant"].startswith("qvit-")]
    if min_speedup is not None:
        for row in own:
            ratio = row["speedup_vs"].get(BEST)
            if ratio is None:
                return GateError(
                    "gate not met: --min-speedup needs a compiled float model beside the folder, and none was timed"
                )
            if ratio["ratio"] < min_speedup:
                return GateError(
                    f"gate not met: {row['variant']} at batch {row['batch']} is {ratio['ratio']:.2f} times as fast "
                    f"as the fastest float model, below --min-speedup {min_speedup:g}"
                )
    if fail_slower is None:
        return None
    for row in found["against"]["rows"]:
        if row["variant"].startswith("qvit-") and row["slower"] > fail_slower:
            layers = found["against"]["slower_layers"]
            where = f"; the layers that became slower: {', '.join(layers)}" if layers else ""
            return GateError(
                f"gate not met: {row['variant']} at batch {row['batch']} is {100 * row['slower']:.1f} % slower than "
                f"before (95 % interval {100 * row['low']:.1f} to {100 * row['high']:.1f}), more than --fail-slower "
                f"{100 * fail_slower:g}%{where}"
            )
    return None
