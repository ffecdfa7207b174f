"""What the figures say, in sentences that are computed from them: what holds a pass up, and from when int8 pays."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qvit.kept import BEST_FLOAT, compiled_twin, is_float, is_own
from qvit.latency.quantized import GRAPH
from qvit.latency.rates import OPERATIONS
from qvit.timing import STEADY, STEADY_SPREAD

# A layer with more than this share of the time is named, and one that takes more times its floor is far from it.
_LARGE, _FAR = 0.15, 2.0
# Layers that take so many times what the pass takes were measured under other circumstances; less is chance.
_ALONE = 1.1


def judge(found: Mapping[str, Any]) -> list[str]:
    """Sentences about a report: for each of the folder's own variants, or for the best one where there is none."""
    rows = found["rows"]
    own = list(dict.fromkeys(row["variant"] for row in rows if is_own(row["variant"])))
    sentences: list[str] = []
    for name in own:
        sentences += _compare(found, name)
        sentences += _find_crossover(found, name)
        for batch in dict.fromkeys(row["batch"] for row in rows):
            sentences += _explain(found, name, batch)
        sentences += _say_bits(found, name)
    sentences += _say_rates(found) if own else _name_best(found)
    # the same slow path, once, however many batch sizes take it
    return list(dict.fromkeys([*sentences, *_say_unsteady(rows), *_say_unknown(found)]))


def _of(rows: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    return sorted((row for row in rows if row["variant"] == name), key=lambda row: row["batch"])


def _compare(found: Mapping[str, Any], name: str) -> Iterator[str]:
    """How many times faster than the best float model, at every batch size."""
    for row in _of(found["rows"], name):
        ratio = row["speedup_vs"].get(BEST_FLOAT)
        if ratio is None:
            continue
        floats = [r for r in found["rows"] if r["batch"] == row["batch"] and is_float(r["variant"])]
        best = min(floats, key=lambda r: r["latency_ms"]["p50"])
        faster = ratio["ratio"] >= 1
        times = ratio["ratio"] if faster else 1 / ratio["ratio"]
        yield (
            f"Batch {row['batch']}: {name} takes {row['latency_ms']['p50']:.2f} ms, {times:.2f} times as "
            f"{'fast' if faster else 'long'} as {best['variant']}, the fastest float model here "
            f"({_say_interval(ratio, faster)})."
        )


def _say_interval(ratio: Mapping[str, Any], faster: bool) -> str:
    if ratio["low"] is None:
        return "too few rounds for an interval"
    low, high = (ratio["low"], ratio["high"]) if faster else (1 / ratio["high"], 1 / ratio["low"])
    return f"95 % interval {low:.2f} to {high:.2f}"


def _find_crossover(found: Mapping[str, Any], name: str) -> Iterator[str]:
    """From which batch size the low-bit model pays."""
    points = [
        (row["batch"], row["speedup_vs"][BEST_FLOAT])
        for row in _of(found["rows"], name)
        if BEST_FLOAT in row["speedup_vs"]
    ]
    if not points:
        return
    measured = ", ".join(str(batch) for batch, _ in points)
    if any(ratio["low"] is None for _, ratio in points):
        yield f"From which batch size it pays takes six rounds at least to say ({measured} were measured)."
        return
    pays = [ratio["low"] > 1 for _, ratio in points]
    open_ = ", ".join(str(batch) for batch, ratio in points if ratio["low"] <= 1 <= ratio["high"])
    if all(pays):
        yield f"It pays at every batch size that was measured ({measured})."
    elif not any(pays):
        told = f"; at {open_} it cannot be told apart from the fastest float model" if open_ else ""
        yield f"It pays at none of the batch sizes that were measured ({measured}){told}."
    elif pays[-1]:
        start = max(index for index, paying in enumerate(pays) if not paying)
        (below, less), (above, more) = points[start], points[start + 1]
        between = _interpolate(below, less["ratio"], above, more["ratio"])
        about = f", by interpolation from about {between:.0f}" if between else ""
        yield f"It pays from batch {above} on, of those measured ({measured}){about}."
    else:
        paying = ", ".join(str(b) for (b, _), yes in zip(points, pays, strict=True) if yes)
        yield f"It pays at batch {paying}, not at all of {measured}."


def _interpolate(below: int, less: float, above: int, more: float) -> float | None:
    """The batch size where the ratio passes one, on logarithmic axes."""
    if not less < 1 < more:
        return None
    share = math.log(1 / less) / math.log(more / less)
    return below * (above / below) ** share


def _explain(found: Mapping[str, Any], name: str, batch: int) -> Iterator[str]:
    """What the time of a pass consists of, and which bound holds."""
    layers = [la for la in found["layers"] if la["variant"] == name and la["batch"] == batch]
    timed = [layer for layer in layers if layer["ms"] is not None]
    row = next((r for r in found["rows"] if r["variant"] == name and r["batch"] == batch), None)
    if not timed or row is None:
        return
    whole = timed[0]["pass_ms"]
    spent = sum(layer["ms"] for layer in timed)
    if spent > _ALONE * whole:
        yield (
            f"Batch {batch}: the layers alone, one by one, took {spent:.2f} ms, and a whole pass {whole:.2f}: what "
            "they wait for alone they do not wait for in a pass, and no bound follows from their times."
        )
    else:
        yield _say_shares(layers, row, spent, whole)
    kinds = [k for k in found["kinds"] if k["variant"] == name and k["batch"] == batch and k["ms"]]
    for kind in sorted(kinds, key=lambda k: -k["share"]):
        if kind["share"] > _LARGE and kind["ms"] > _FAR * kind["floor_ms"]:
            yield (
                f"{kind['name']} ({kind['kind']}) has {100 * kind['share']:.0f} % of the layers' time and takes "
                f"{kind['ms'] / kind['floor_ms']:.1f} times its floor, which is set by {kind['bound']}."
            )
    reasons = dict.fromkeys(la["fallback_reason"] for la in layers if la["fallback_reason"])
    for reason in reasons:
        yield f"Slow path: {reason}."


def _say_shares(
    layers: Sequence[Mapping[str, Any]], row: Mapping[str, Any], spent: float, whole: float
) -> str:
    """How much of a pass of `whole` ms are layers, `spent` in all, what else there is, and the bound."""
    layered = spent / whole
    timed = [layer for layer in layers if layer["ms"] is not None]
    untimed = [layer["name"] for layer in layers if layer["ms"] is None]
    floor = sum(layer["floor_ms"] for layer in timed)
    products = sum(layer["floor_ms"] for layer in timed if layer["bound"] == OPERATIONS)
    reached, rest = floor / whole, max(0.0, 1 - layered)
    between = f"{100 * rest:.0f} % gaps between them"
    if untimed:
        between += f" and what no clock sees alone ({', '.join(untimed)})"
    if reached > 1:
        held = (
            "That is more than all of it: the pass did better than the machine when its rates were measured, and no "
            "bound follows."
        )
    elif rest > 0.4:
        held = _say_gaps(row, bool(untimed))
    else:
        held = _name_bound(reached, products / floor if floor else 0.0)
    return (
        f"Batch {row['batch']}: {100 * min(layered, 1):.0f} % of the time are layers, {between}; the machine's floor "
        f"for the same bytes and operations is {100 * reached:.0f} % of it. {held}"
    )


def _say_gaps(row: Mapping[str, Any], untimed: bool) -> str:
    if row["mode"] == GRAPH:
        return (
            "What is in no layer holds it up: a graph launches the whole pass at once, and layers were timed one by "
            "one, each with a launch of its own."
        )
    if row["launch_count"] is not None and row["launch_count"] <= 1:
        what = "the call itself" + (" and the layers without a time" if untimed else "")
        return f"What is in no layer holds it up: {what}, not launches, for a pass is a single one."
    if untimed:
        return "What is in no timed layer holds it up, not arithmetic."
    return "Gaps hold it up: launches from Python, not arithmetic."


def _name_bound(reached: float, products: float) -> str:
    if reached < 0.5:
        return "Neither arithmetic nor memory holds it up: the kernels do not reach what this machine can."
    if products > 0.5:
        return "Arithmetic holds it up: matrix products have most of the floor."
    return "Memory holds it up: bytes have most of the floor."


def _say_bits(found: Mapping[str, Any], name: str) -> Iterator[str]:
    row = _of(found["rows"], name)[0]
    made_in = row["compute_dtype"].split("/")
    if row["storage_bits"] < 8 and "int8" in made_in:
        yield (
            f"Weights take {row['storage_bits']:g} bits where they are stored and 8 where they are multiplied: fewer "
            "bits save bytes, not arithmetic."
        )
    if made_in == ["float"]:
        yield (
            "Matrix products of the integers are computed in float here, exactly: this path is for being right, not "
            "for being fast."
        )
    elif "float" in made_in:
        yield "Some matrix products of the integers are computed in float here, exactly; `explain()` says which."


def _say_rates(found: Mapping[str, Any]) -> Iterator[str]:
    """Whether this machine is one on which integers can be faster at all."""
    rates = found["rates"]["operations"]
    if rates["int8"] < rates["float"]:
        yield (
            f"This machine was measured to multiply int8 at {rates['int8'] / 1e9:.3g} Gop/s and floats at "
            f"{rates['float'] / 1e9:.3g} with torch: its int8 product gains nothing here, only kernels that bring "
            "their own can."
        )


def _name_best(found: Mapping[str, Any]) -> Iterator[str]:
    for batch in dict.fromkeys(row["batch"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["batch"] == batch]
        best = min(rows, key=lambda row: row["latency_ms"]["p50"])
        yield f"Batch {batch}: {best['variant']} is the fastest of {len(rows)}, {best['latency_ms']['p50']:.2f} ms."


def _say_unsteady(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Ratios of which another run may give others."""
    ratios = [
        (row, row["speedup_vs"][BEST_FLOAT]) for row in rows if BEST_FLOAT in row["speedup_vs"]
    ]
    if any(ratio["spread"] is None for _, ratio in ratios):
        yield "Speed-ups of fewer than six rounds have no interval, and another run may find others."
    unsteady = [
        f"{row['variant']} at batch {row['batch']} ({100 * ratio['spread']:.0f} %)"
        for row, ratio in ratios
        if ratio["spread"] is not None and not ratio["steady"]
    ]
    if unsteady:
        named = unsteady if len(unsteady) < 4 else [*unsteady[-3:], f"and {len(unsteady) - 3} more"]
        yield (
            f"The interval of these speed-ups is wider than {100 * STEADY_SPREAD:g} %, and another run may be more "
            f"than {100 * STEADY:g} % off: "
            f"{', '.join(named)}. A quieter machine or more --rounds narrow it."
        )


def _say_unknown(found: Mapping[str, Any]) -> Iterator[str]:
    left = {item["variant"]: f" ({item['reason']})" for item in found["left_out"]}
    lacking: dict[str, list[str]] = {}
    for batch in dict.fromkeys(row["batch"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["batch"] == batch]
        floats = [row for row in rows if is_float(row["variant"])]
        best = min(floats, key=lambda row: row["latency_ms"]["p50"], default=None)
        twin = None if best is None else compiled_twin(best["variant"])
        if twin is None:
            lacking.setdefault("no float model was timed", []).append(str(batch))
        elif all(row["variant"] != twin for row in rows):
            reason = (
                f"the fastest float model was not timed compiled, as {twin}{left.get(twin, '')}"
            )
            lacking.setdefault(
                f"{reason}, and against an eager one it would say little", []
            ).append(str(batch))
    for reason, batches in lacking.items():
        yield f"No speed-up is stated at batch {', '.join(batches)}: {reason}."
