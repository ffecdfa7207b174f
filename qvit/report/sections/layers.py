"""Where the time of a pass goes, layer by layer, beside what it cannot take less than."""

from collections.abc import Mapping, Sequence
from typing import Any

from qvit.report.charts import draw_bars
from qvit.report.page import OURS, Figure, Panels, Section, Table
from qvit.report.wording import percent, shortly


def show_layers(report: Mapping[str, Any]) -> Section | None:
    """Layers of all blocks together as bars with their floors; every layer as numbers."""
    layers = report["layers"]
    keys = list(dict.fromkeys((layer["variant"], layer["batch"]) for layer in layers))
    if not keys:
        return None
    figures, rows = [], []
    for variant, batch in keys:
        kinds = [k for k in report["kinds"] if (k["variant"], k["batch"]) == (variant, batch)]
        figures.append(_draw(kinds, variant, batch))
        rows += [_cells(batch, kind) for kind in kinds]
    columns = (
        "batch", "layer", "times", "ms", "share", "floor ms", "x floor", "set by", "kB", "Mop", "bits", "kernel",
    )  # fmt: skip
    numeric = frozenset({0, 2, 3, 4, 5, 6, 8, 9})
    table = Table(columns, rows, numeric, folded="The numbers, blocks together")
    panels = Panels(
        figures,
        caption=(
            "Milliseconds of a pass, layers of all blocks together. The line across is the floor: what the bytes and "
            "operations of these layers take at the rates that this machine was measured to reach."
        ),
        legend=[(OURS, "measured"), ("mark", "floor")],
        numbers=table,
    )
    reasons = dict.fromkeys(la["fallback_reason"] for la in layers if la["fallback_reason"])
    lead = f"{len(layers) // len(keys)} layers, each timed alone." + "".join(
        f" A slow path is taken because {reason}." for reason in reasons
    )
    return Section(
        "layers", "Where the time goes", lead, [panels, _every(layers)], {"layers": layers}
    )


def _draw(kinds: Sequence[Mapping[str, Any]], variant: str, batch: int) -> Figure:
    timed = [kind for kind in kinds if kind["ms"] is not None]
    bars = [(kind["name"], kind["ms"], kind["floor_ms"]) for kind in timed]
    svg = draw_bars(bars, role=OURS, value_name="ms", mark_name="ms floor", least=0.0)
    most = max(timed, key=lambda kind: kind["ms"], default=None)
    words = (
        "Nothing was timed."
        if most is None
        else f"Most is {most['name']}, {percent(most['share'])}."
    )
    return Figure(f"{variant}, batch {batch}", svg, words)


def _cells(batch: int, kind: Mapping[str, Any]) -> tuple[str, ...]:
    times = None if kind["ms"] is None or not kind["floor_ms"] else kind["ms"] / kind["floor_ms"]
    return (
        str(batch),
        kind["name"],
        str(kind["times"]),
        shortly(kind["ms"]),
        "-" if kind["share"] is None else percent(kind["share"]),
        shortly(kind["floor_ms"]),
        shortly(times),
        kind["bound"],
        shortly(kind["bytes"] / 1e3),
        shortly(kind["operations"] / 1e6),
        "-" if kind["bits"] is None else f"W{kind['bits']:.3g}",
        kind["kernel"],
    )


def _every(layers: Sequence[Mapping[str, Any]]) -> Table:
    rows = [_cells(layer["batch"], {**layer, "times": 1}) for layer in layers]
    columns = ("batch", "layer", "ms", "share", "floor ms", "x floor", "set by", "kernel")
    chosen = (0, 1, 3, 4, 5, 6, 7, 11)
    cells = [tuple(row[i] for i in chosen) for row in rows]
    return Table(columns, cells, frozenset({0, 2, 3, 4, 5}), folded="Every layer")
