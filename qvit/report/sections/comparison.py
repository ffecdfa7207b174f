"""What became slower or faster since an earlier report."""

from collections.abc import Mapping
from typing import Any

from qvit.report.page import Block, Notice, Section, Table

_LAYERS = 12  # rows; those that became slower come first


def compare_latency(report: Mapping[str, Any]) -> Section | None:
    """Rows and layers beside those of the report that --against named; None without one."""
    found = report.get("against")
    if found is None:
        return None
    rows = [
        (
            str(row["batch"]),
            row["variant"],
            _percent(row["slower"]),
            "-" if row["low"] is None else f"{_percent(row['low'])} to {_percent(row['high'])}",
            _percent(row["raw"]),
        )
        for row in found["rows"]
    ]
    columns = ("batch", "variant", "slower %", "95 % interval", "raw, %")
    blocks: list[Block] = []
    if not found["same_machine"]:
        blocks.append(Notice("Another machine, or another torch: only ratios can be compared."))
    blocks.append(Table(columns, rows, frozenset({0, 2, 3, 4})))
    layers = [
        (str(layer["batch"]), layer["variant"], layer["name"], _percent(layer["slower"]))
        for layer in found["layers"][:_LAYERS]
    ]
    if layers:
        names = ("batch", "variant", "layer", "slower %")
        caption = "Beyond what the layers of the same pass did on the whole: slowest first."
        blocks.append(Table(names, layers, frozenset({0, 3}), caption=caption))
    return Section("against", "Since the earlier report", _lead(found), blocks, dict(found))


def _lead(found: Mapping[str, Any]) -> str:
    if not found["rows"]:
        return "The two have no variant and batch size in common: nothing can be compared."
    drift = "What the float models did meanwhile is taken out."
    if any(value is None for value in found["drift"].values()):
        drift = "No float model is in both reports, so what the machine did meanwhile is in these figures."
    if not found["layers"]:
        return f"The two have no layer in common. {drift}"
    if not found["slower_layers"]:
        return f"No layer became slower by more than a tenth. {drift}"
    return f"Slower by more than a tenth: {', '.join(found['slower_layers'])}. {drift}"


def _percent(share: float) -> str:
    return f"{100 * share:+.1f}"
