"""How fast the model is, beside what, and why."""

from collections.abc import Mapping, Sequence
from typing import Any

from qvit.kept import BEST_FLOAT, is_float, is_own
from qvit.report.charts import draw_bars
from qvit.report.page import (
    FLOAT,
    OURS,
    RIVAL,
    Block,
    Figure,
    Key,
    Notice,
    Panels,
    Points,
    Section,
    Table,
)
from qvit.report.wording import milliseconds, percent, shortly
from qvit.timing import STEADY, STEADY_SPREAD

_LEGEND = {OURS: "this model", FLOAT: "the float model", RIVAL: "other int8 and fp8"}
_COLUMNS = (
    "batch", "variant", "p50 ms", "x best float", "images/s", "stored bits", "computes in", "same top-1", "weights MB",
    "peak MB",
)  # fmt: skip
# Of a second table, for who wants them: all together are wider than a page.
_MORE = (
    "batch", "variant", "device ms", "p90 ms", "p95", "p99", "mean (95 %)", "load s", "first call s", "launches",
    "calls",
)  # fmt: skip
_MORE_CAPTION = (
    "p90 is what MLPerf calls SingleStream, p99 MultiStream, images a second Offline. First calls find compilers' "
    "caches on the disk filled; the first of a machine is longer where there is something to compile."
)
_WORDS = ("variant", "computes in")  # columns without numbers


def role_of(variant: str) -> str:
    """Whose a variant is."""
    if is_own(variant):
        return OURS
    return FLOAT if is_float(variant) else RIVAL


def show_latency(report: Mapping[str, Any]) -> Section:
    """Times of all variants, drawn and as numbers."""
    rows = report["rows"]
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    roles = list(dict.fromkeys(role_of(row["variant"]) for row in rows))
    panels = Panels(
        [_draw(rows, batch) for batch in batches],
        caption="Median time of a pass, in milliseconds: shorter is faster. Variants took turns, round by round.",
        legend=[(role, _LEGEND[role]) for role in (OURS, FLOAT, RIVAL) if role in roles],
    )
    blocks: list[Block] = [panels, *_tables(rows), *_ratios(rows)]
    blocks += [Notice(f"{warning[0].upper()}{warning[1:]}.") for warning in report["warnings"]]
    if report["left_out"]:
        blocks.append(_left_out(report["left_out"]))
    data = {"rows": [_short(row) for row in rows]}
    return Section("latency", "Latency", _lead(report), blocks, data)


def explain_latency(report: Mapping[str, Any]) -> Section | None:
    """The verdict: which bound holds, what share is gaps, and from which batch size low bits pay."""
    if not report["verdict"]:
        return None
    lead, *others = report["verdict"]
    blocks = [Points(others)] if others else []
    return Section("why", "Why", lead, blocks, {"verdict": report["verdict"]})


def find_own(report: Mapping[str, Any], batch: int | None = None) -> Mapping[str, Any] | None:
    """The row of the model itself, at the smallest batch size or the one given."""
    own = [row for row in report["rows"] if role_of(row["variant"]) == OURS]
    own = [row for row in own if batch is None or row["batch"] == batch]
    return min(own, key=lambda row: row["batch"], default=None)


def describe_speedup(row: Mapping[str, Any]) -> str:
    """ "1.34", or a dash where no compiled float model was timed."""
    ratio = row["speedup_vs"].get(BEST_FLOAT)
    return "-" if ratio is None else shortly(ratio["ratio"])


def key_of_speed(row: Mapping[str, Any]) -> Key | None:
    """The speed of a row as a number at the top; None where no compiled float model was timed."""
    ratio = row["speedup_vs"].get(BEST_FLOAT)
    if ratio is None:
        return None
    value = ratio["ratio"]
    detail = "that of the fastest float model"
    if not ratio["steady"]:
        detail += "; another run may find more or less"
    if value >= 1:
        return Key("Speed", f"{shortly(value)}x", detail)
    return Key("Time", f"{shortly(1 / value)}x", detail)


def _lead(report: Mapping[str, Any]) -> str:
    machine = report["machine"]
    place = machine["gpu"] if report["device"].startswith("cuda") else machine["cpu"]
    clock = (
        "Times are what a caller waits for."
        if report["device"].startswith("cuda")
        else "Times are what a caller waits for; a CPU has no other clock."
    )
    return (
        f"On {place}, {machine['threads']} thread{'s' if machine['threads'] > 1 else ''}, torch {machine['torch']}, "
        f"{report['rounds']} round{'s' if report['rounds'] > 1 else ''} or more. {clock}"
    )


def _draw(rows: Sequence[Mapping[str, Any]], batch: int) -> Figure:
    found = sorted((r for r in rows if r["batch"] == batch), key=lambda r: r["latency_ms"]["p50"])
    bars = [(row["variant"], row["latency_ms"]["p50"], None) for row in found]
    svg = draw_bars(
        bars,
        role=FLOAT,
        roles=[role_of(row["variant"]) for row in found],
        value_name="ms",
        least=0.0,
    )
    words = "; ".join(f"{name} {shortly(value)}" for name, value, _ in bars)
    return Figure(f"Batch {batch}, ms", svg, f"Milliseconds, fastest first: {words}.")


def _tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """What is compared first, and behind a fold the rest."""
    cells = [_cells(row) for row in rows]
    return [
        _choose(cells, _COLUMNS, _caption(rows), ""),
        _choose(cells, _MORE, _MORE_CAPTION, "Percentiles, means, loading and launches"),
    ]


def _choose(
    cells: Sequence[Mapping[str, str]], columns: Sequence[str], caption: str, folded: str
) -> Table:
    """Of these columns the ones that any row has something in."""
    kept = [name for name in columns if any(line[name] != "-" for line in cells)]
    numeric = frozenset(index for index, name in enumerate(kept) if name not in _WORDS)
    lines = [[line[name] for name in kept] for line in cells]
    return Table(kept, lines, numeric, caption=caption, folded=folded)


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    times = row["latency_ms"]
    mean = shortly(times["mean"])
    if times["ci95"] is not None:
        mean += " ({} to {})".format(*map(shortly, times["ci95"]))
    agreement = row["agree_top1_with_float"]
    ratio = row["speedup_vs"].get(BEST_FLOAT)
    unsure = "" if ratio is None or ratio["steady"] else " *"
    return {
        "batch": str(row["batch"]),
        "variant": row["variant"],
        "p50 ms": shortly(times["p50"]),
        "x best float": describe_speedup(row) + unsure,
        "images/s": shortly(row["images_per_s"]),
        "stored bits": f"{row['storage_bits']:g}",
        "computes in": row["compute_dtype"],
        "same top-1": "-" if agreement is None else percent(agreement / 100),
        "weights MB": shortly(row["weights_mb"]),
        "peak MB": shortly(row["peak_mem_mb"]),
        "device ms": "-" if row["device_ms"] is None else shortly(row["device_ms"]["p50"]),
        "p90 ms": shortly(times["p90"]),
        "p95": shortly(times["p95"]),
        "p99": shortly(times["p99"]),
        "mean (95 %)": mean,
        "load s": shortly(row["load_s"]),
        "first call s": shortly(row["first_call_s"]),
        "launches": "-" if row["launch_count"] is None else str(row["launch_count"]),
        "calls": str(row["iters"]),
    }


def _caption(rows: Sequence[Mapping[str, Any]]) -> str:
    sentences = []
    if any(row["peak_mem_mb"] is not None for row in rows):
        sentences.append("Peak memory counts from before the model is loaded.")
    if any(row["agree_top1_with_float"] is not None for row in rows):
        sentences.append(
            "Same top-1: on synthetic pictures without objects, of which a model is less sure than of photographs."
        )
    ratios = [row["speedup_vs"].get(BEST_FLOAT) for row in rows]
    if any(ratio is not None and not ratio["steady"] for ratio in ratios):
        sentences.append(
            f"* The interval of this ratio is wider than {100 * STEADY_SPREAD:g} %, or there were too few rounds for "
            f"one: another run may be more than {100 * STEADY:g} % off."
        )
    return " ".join(sentences)


def _ratios(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """How many times faster each row is than every float variant; nothing where no speed-up is stated."""
    names = [
        n for n in dict.fromkeys(n for row in rows for n in row["speedup_vs"]) if n != BEST_FLOAT
    ]
    cells = [
        (
            str(row["batch"]),
            row["variant"],
            *(_interval(row["speedup_vs"].get(name)) for name in names),
        )
        for row in rows
        if row["speedup_vs"]
    ]
    if not names:
        return []
    columns = ("batch", "variant", *(f"x {name}" for name in names))
    return [
        Table(columns, cells, frozenset({0}), folded="Times as fast as each float model (95 %)")
    ]


def _interval(ratio: Mapping[str, Any] | None) -> str:
    if ratio is None:
        return "-"
    value = shortly(ratio["ratio"])
    if ratio["low"] is None:
        return f"{value} *"
    unsure = "" if ratio["steady"] else " *"
    return f"{value} ({shortly(ratio['low'])} to {shortly(ratio['high'])}){unsure}"


def _left_out(items: Sequence[Mapping[str, Any]]) -> Table:
    cells = [(item["variant"], item["reason"], item["command"] or "") for item in items]
    return Table(
        ("left out", "why", "what adds it"), cells, code=True, folded=f"{len(items)} left out"
    )


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "variant": row["variant"],
        "batch": row["batch"],
        "p50": row["latency_ms"]["p50"],
        "speedup_vs": row["speedup_vs"].get(BEST_FLOAT),
    }


def name_time(row: Mapping[str, Any]) -> str:
    """The median of a row, in words."""
    return milliseconds(row["latency_ms"]["p50"])
