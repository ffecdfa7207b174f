"""Two reports held against each other."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qvit.errors import InputError
from qvit.kept import LATENCY, SCHEMA_VERSIONS, is_float
from qvit.timing import Ratio, ratio_between

SCHEMA_VERSION = SCHEMA_VERSIONS[LATENCY]
# A layer is named where it is slower by more than this share, beyond what all layers are.
_NAMED = 0.10


def compare_reports(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """What became slower or faster since an earlier report.

    The machine may be slower altogether, so what is compared is each round's time in times of that round's float
    variants, the geometric mean of those that both reports have: both reports' rounds have their part in the interval.
    It tells what chance within two runs does, not what differs between them and stays for a whole run.

    Returns:
        `same_machine`, `drift` {batch in both reports: how many times longer the float variants take now; None where
        no such variant is in both}, `rows` [`variant`, `batch`, `slower` (share beyond the drift, negative where
        faster), `low`, `high` (its interval, None for three rounds or fewer), `raw` (share without taking the drift
        out)], `layers` [`variant`, `batch`, `name`, `slower` of layers summed over blocks, slowest first, beyond what
        the layers' median did] and `slower_layers`, names of those that are slower by more than a tenth.
    """
    rows, drifts = [], {}
    for batch in dict.fromkeys(row["batch"] for row in now["rows"]):
        pairs = _pairs(now, before, batch)
        if not pairs:
            continue
        floats = [(new, old) for new, old in pairs if is_float(new["variant"])]
        yards = None
        drifts[str(batch)] = None
        if floats:
            yards = tuple(_yardstick([pair[side] for pair in floats]) for side in (0, 1))
            drifts[str(batch)] = ratio_between(*yards).value
        for new, old in pairs:
            raw = ratio_between(new["rounds_ms"], old["rounds_ms"])
            ratio = raw
            if yards is not None:
                ratio = ratio_between(
                    *(_in_yards(row, yard) for row, yard in zip((new, old), yards, strict=True))
                )
            rows.append(
                {"variant": new["variant"], "batch": batch, **_shares(ratio), "raw": raw.value - 1}
            )
    layers = _compare_layers(now["kinds"], before["kinds"])
    return {
        "same_machine": _machine(now) == _machine(before),
        "drift": drifts,
        "rows": rows,
        "layers": layers,
        "slower_layers": list(dict.fromkeys(layer["name"] for layer in _slower(layers))),
    }


def check_earlier(before: Any, *, model: str, scheme: str | None, device: str) -> None:
    """Raises InputError for what is no earlier report of this model on such a device, before anything is measured."""
    if not isinstance(before, Mapping) or "rows" not in before:
        raise InputError("--against: the file is no report of `qvit bench`")
    if before.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"--against: the report has schema version {before.get('schema_version')!r}, and this qvit writes "
            f"{SCHEMA_VERSION}; make it anew with `qvit bench -o`"
        )
    try:
        compare_reports(before, before)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(
            f"--against: the report is broken ({type(error).__name__}: {error}); make it anew with `qvit bench -o`"
        ) from error
    expected = (
        ("model", "resolved_name", model),
        ("scheme", "scheme", scheme),
        ("device", "device", device),
    )
    for name, field, wanted in expected:
        if before.get(field) != wanted:
            raise InputError(
                f"--against: the report is of {name} {before.get(field)}, and this one will be of {wanted}; only "
                "reports of the same are compared"
            )


def _yardstick(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The geometric mean of several variants' times, round by round."""
    return [
        math.exp(statistics.fmean(map(math.log, ms)))
        for ms in zip(*(row["rounds_ms"] for row in rows), strict=True)
    ]


def _in_yards(row: Mapping[str, Any], yard: Sequence[float]) -> list[float]:
    return [ms / unit for ms, unit in zip(row["rounds_ms"], yard, strict=True)]


def _shares(ratio: Ratio) -> dict[str, float | None]:
    ends = ratio.interval or (None, None)
    low, high = (None if end is None else end - 1 for end in ends)
    return {"slower": ratio.value - 1, "low": low, "high": high}


def name_slower(against: Mapping[str, Any], variant: str, batch: int) -> list[str]:
    """The layers of one row that became slower by more than a tenth, of what `compare_reports` returns."""
    layers = [la for la in against["layers"] if (la["variant"], la["batch"]) == (variant, batch)]
    return [layer["name"] for layer in _slower(layers)]


def _pairs(
    now: Mapping[str, Any], before: Mapping[str, Any], batch: int
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    earlier = {row["variant"]: row for row in before["rows"] if row["batch"] == batch}
    return [
        (row, earlier[row["variant"]])
        for row in now["rows"]
        if row["batch"] == batch and row["variant"] in earlier
    ]


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


def _slower(layers: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    return (layer for layer in layers if layer["slower"] > _NAMED)


def _key(kind: Mapping[str, Any]) -> tuple[str, int]:
    return kind["variant"], kind["batch"]


def _machine(report: Mapping[str, Any]) -> tuple[Any, ...]:
    facts = report["machine"]
    names = ("cpu", "cores", "threads", "cpu_features", "gpu", "torch")
    return tuple(str(facts.get(name)) for name in names)
