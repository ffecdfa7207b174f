"""DeiT-S with random weights (values do not change the time): integers beside timm's float model."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.cells import Cell
from qvit import pipeline, zoo
from qvit.latency import Request, compare_folder
from qvit.recipe import Recipe

SCHEMES = ((8, 8), (4, 8), (4, 4))
REPEATS = 3


def cells() -> Iterator[Cell]:
    """One a scheme and repeat: the spread between repeats is that of the machine."""
    for w, a in SCHEMES:
        for repeat in range(REPEATS):
            label = f"cpu-models-deit_s-w{w}a{a}-repeat{repeat}"
            yield label, lambda w=w, a=a: _time(w, a)


def _time(weight_bits: int, activation_bits: int) -> dict[str, Any]:
    recipe = Recipe.preset("qvit", weight_bits=weight_bits, activation_bits=activation_bits)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        source = zoo.resolve("deit_s", pretrained=False)
        pipeline.quantize(source, recipe, out, progress=False)
        request = Request(variants=("fp32", "bf16", "qvit"), batches=(1, 8), rounds=15)
        result = compare_folder(out, request, progress=False)
    del result["folder"], result["machine"]
    return result


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, a row a cell, batch and variant."""
    lines = [
        "| scheme | batch | variant | p50 ms | p90 ms | x fp32 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for cell in found:
        for row in cell["rows"]:
            ms = row["latency_ms"]
            lines.append(
                f"| {cell['scheme']} | {row['batch']} | {row['variant']} | {ms['p50']:.1f} "
                f"| {ms['p90']:.1f} | {row['speedup_over_fp32']:.2f} |"
            )
    return "\n".join(lines)
