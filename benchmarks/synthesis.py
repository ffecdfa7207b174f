"""Images of every method beside noise and real ones, as ViT-Tiny sees them: published iteration counts, a batch each.

Real images are of the development set (odd classes of imagenet/train). What counts is how much of the way from noise
to them a method goes, in the measure that it is about. Entropy depends a little on how many images share the places of
its density: noise has -0.951 by 32, -0.957 by 16 and -0.96 to -1.00 by 4; real images -0.04 by 32, -0.05 to 0.01 by 4.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.cells import Cell
from benchmarks.classes import SHARED
from benchmarks.sources import float_vit, source
from qvit import synthesis
from qvit.data import DataConfig, open_images
from qvit.recipe import Synthesis
from qvit.synthesis import fastest_precision, measure
from qvit.synthesis.measures import summarise

SEED = 0
COUNT = 32
# name, method, what differs from its preset. PSAQ-ViT couples the images of a batch, and has its published 32; where
# the images do not know of each other, fewer say the same.
ROWS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("noise", "noise", {}),
    ("mimiq", "mimiq", {"images": 16}),
    ("psaq", "psaq", {}),
    ("sardfq", "sardfq", {"images": 2}),
    ("mimiq-sparse", "mimiq", {"images": 4, "sparse": 0.3}),
    ("mimiq-1to1", "mimiq", {"images": 4, "attention": 1.0}),
    ("psaq-sparse", "psaq", {"sparse": 0.3}),
)


def cells() -> Iterator[Cell]:
    """One a row, and the real images."""
    yield "synthesis-vit_t-real", _measure_real
    for name, method, changes in ROWS:
        yield f"synthesis-vit_t-{name}", lambda m=method, c=changes: _make(m, c)


def _measure_real() -> dict[str, Any]:
    images = open_images(
        SHARED / "imagenet" / "train",
        DataConfig.from_pretrained_cfg(source().pretrained_cfg),
        class_map=SHARED / "imagenet" / "synsets.txt",
        num_classes=1000,
    )
    odd = [i for i, label in enumerate(images.labels) if label % 2]
    chosen = [odd[n * len(odd) // COUNT] for n in range(COUNT)]
    found = measure(float_vit(), torch.stack([images.read(i) for i in chosen]))
    return {"row": "real", "images": COUNT, "measures": summarise(found), "iterations": 0}


def _make(method: str, changes: dict[str, Any]) -> dict[str, Any]:
    precision = fastest_precision("cpu")
    settings = Synthesis.preset(method, **{"images": COUNT, "precision": precision, **changes})
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        found = synthesis.synthesize(source(), settings, out, seed=SEED, progress=True)
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {
        "row": method,
        "images": settings.images,
        "iterations": settings.iterations,
        "measures": found["measures"]["after"],
        "seconds": found["seconds"],
        "retried": found["retried"],
        "settings": {name: getattr(settings, name) for name in settings.__dataclass_fields__},
        "losses": [line for line in lines if "loss" in line][::10],
        "on_the_way": [line for line in lines if line.get("event") == "measured"],
    }


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, a row a cell; the share of the way from noise to real images behind the two measures."""
    rows = {cell["cell"].removeprefix("synthesis-vit_t-"): cell for cell in found}
    noise, real = rows["noise"]["measures"], rows["real"]["measures"]
    lines = [
        "| images | iterations | 1 - SSIM^2 | of the way | entropy | of the way | confidence | TV | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, cell in rows.items():
        m = cell["measures"]
        ways = [
            f"{100 * (m[k] - noise[k]) / (real[k] - noise[k]):.0f} %"
            for k in ("head_distance", "patch_entropy")
        ]
        lines.append(
            f"| {name} | {cell['iterations']} | {m['head_distance']:.3f} | {ways[0]} | {m['patch_entropy']:.3f} "
            f"| {ways[1]} | {m['confidence']:.2f} | {m['total_variation']:.3f} | {cell.get('seconds', 0):.0f} |"
        )
    return "\n".join(lines)
