"""Memory and first calls of DeiT-S on this CPU, each model in a process of its own: timm's fp32 beside the integers."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.cells import ROOT, Cell
from benchmarks.cpu_models import BATCHES, SCHEMES
from qvit import pipeline, zoo
from qvit.recipe import Recipe

MODEL = "deit_s"

# Peak memory counts from when torch, timm and qvit are imported and the images are there.
_CHILD = """
import json, sys, time
import torch, timm
from qvit import zoo
from qvit.deployment import QuantViT
kind, batch = sys.argv[1], int(sys.argv[2])
images = torch.randn(batch, 3, 224, 224)
torch.set_grad_enabled(False)
def memory(name):
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith(name))
torch.nn.functional.gelu(torch.randn(4, 4) @ torch.randn(4, 4))  # what torch itself takes at its first product
start, before = time.perf_counter(), memory('VmRSS')
if kind == "fp32":
    model = zoo.load(zoo.resolve("deit_s", pretrained=False), seed=0).eval()
else:
    model = QuantViT.from_pretrained(kind)
load = time.perf_counter() - start
if kind != "fp32":
    model.warmup((batch,))
calls = []
for _ in range(10):
    start = time.perf_counter()
    model(images)
    calls.append(time.perf_counter() - start)
print(json.dumps({"load_seconds": load, "peak_bytes": memory("VmHWM") - before, "call_ms": [1000 * c for c in calls]}))
"""


def cells() -> Iterator[Cell]:
    """One for all."""
    yield f"cpu-footprint-{MODEL}", _measure


def _measure() -> dict[str, Any]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        kinds = {"fp32": "fp32"}
        for w, a in SCHEMES:
            out = Path(folder) / f"w{w}a{a}"
            recipe = Recipe.preset("qvit", weight_bits=w, activation_bits=a).without_images()
            pipeline.quantize(zoo.resolve(MODEL, pretrained=False), recipe, out, progress=False)
            kinds[f"qvit-{out.name}"] = str(out)
        _run(kinds["qvit-w8a8"], 1)  # builds the compiled path, if nobody did before
        for batch in BATCHES:
            rows += [
                {"variant": name, "batch": batch, **_run(kind, batch)}
                for name, kind in kinds.items()
            ]
    return {"model": MODEL, "rows": rows, "schema_version": 1}


def _run(kind: str, batch: int) -> dict[str, Any]:
    code = f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'kernels')]!r}\n{_CHILD}"
    done = subprocess.run(
        [sys.executable, "-c", code, kind, str(batch)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, a row a variant and batch."""
    lines = [
        "| variant | batch | load s | peak MB | of fp32 | first call ms | tenth call ms |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell in found:
        base = {r["batch"]: r["peak_bytes"] for r in cell["rows"] if r["variant"] == "fp32"}
        for row in cell["rows"]:
            share, calls = row["peak_bytes"] / base[row["batch"]], row["call_ms"]
            lines.append(
                f"| {row['variant']} | {row['batch']} | {row['load_seconds']:.2f} | {row['peak_bytes'] / 1e6:.0f} "
                f"| {share:.2f} | {calls[0]:.1f} | {calls[9]:.1f} |"
            )
    return "\n".join(lines)
