"""Distil the table of compiled launches into what the package models latency with: kernels/qvit_kernels/counted/*.json.

    python benchmarks/distil_counts.py

Of results/static/triton-3.9.json, and of the launches that its rows stand for, warp instructions a multiply-accumulate
and a value, by kind of launch and tile. Rows of one kind differ little; their median counts.
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).resolve().parent.parent),
    str(Path(__file__).resolve().parent.parent / "kernels"),
]

from benchmarks.cells import ROOT, write_whole  # noqa: E402 - after the tree is on the path
from benchmarks.static.cases import FAMILIES, cases_of, kernel_file  # noqa: E402
from benchmarks.static.models import model_launches  # noqa: E402
from qvit_kernels.counts import COUNTED, Launch, extent_of, kind_of  # noqa: E402

VERSION = "3.9"
TABLE = ROOT / "benchmarks" / "results" / "static" / f"triton-{VERSION}.json"
CAPABILITIES = (80, 86, 89, 90, 100, 120)


def launches(capability: int) -> dict[str, Launch]:
    """By their names in the table; of weights with multipliers those that the default recipe makes, in groups of 16."""
    found = {
        f"{kernel}/{case.name}/sm_{capability}": case.launch(capability)
        for kernel in FAMILIES
        for case in cases_of(kernel)
        if "groups32" not in case.name
    }
    for name, launch in model_launches(capability):
        found[f"{kernel_file(launch)}/{name}/sm_{capability}"] = launch
    return found


def distil(capability: int) -> dict[str, list[float]]:
    """Kind of launch -> warp instructions of the main loop a multiply-accumulate, of the rest a value."""
    rows = json.loads(TABLE.read_text(encoding="utf-8"))
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for key, launch in launches(capability).items():
        if key not in rows:
            continue  # it shares a binary with one that is there
        row, extent, own = rows[key], extent_of(launch), launch.arguments
        programs = 1.0
        for axis in launch.grid:
            programs *= axis
        rounds = (
            -(-own["K"] // own["BK"]) / own.get("SPLITS", 1) if "BM" in own else own.get("HEADS", 0)
        )
        looped = row["loop"] * launch.warps * programs * rounds
        rest = (row["instructions"] - row["loop"]) * launch.warps * programs
        per_mac = looped / extent.macs if extent.macs else 0.0
        found["/".join(kind_of(launch))].append((per_mac, rest / extent.values))
    return {
        kind: [float(f"{statistics.median(part):.4g}") for part in zip(*pairs, strict=True)]
        for kind, pairs in sorted(found.items())
    }


def main() -> None:
    """Write a file a capability."""
    COUNTED.mkdir(exist_ok=True)
    for capability in CAPABILITIES:
        lines = ",\n".join(
            f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in distil(capability).items()
        )
        text = (
            f'{{\n  "from": "{TABLE.relative_to(ROOT)}",\n  "instructions": {{\n{lines}\n  }}\n}}\n'
        )
        write_whole(COUNTED / f"sm_{capability}.json", text)
        print(f"sm_{capability}: {len(text.splitlines()) - 5} kinds of launches")


if __name__ == "__main__":
    main()
