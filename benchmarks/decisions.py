"""What the parts of the default scheme are worth: KL to the float ViT-Tiny on development images, a change at a time.

The development images are those of the odd classes of imagenet/train, which is where designs are chosen.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.accuracy import SEEDS, UNIFORM_ENDS, WEIGHTS
from benchmarks.cells import Cell
from benchmarks.classes import ODD, SYNSETS, link_classes
from qvit import evaluation, pipeline, zoo
from qvit.data import DataConfig, open_images
from qvit.deployment import QuantViT
from qvit.recipe import Recipe

_GROUPS = tuple(f"weights.group={size}" for size in (0, 64, 16))
_PER_TOKEN = "activations.proj_group=0 activations.fc2_group=0"
# What every recipe of a scheme has: the defaults of the time when these were decided (ablations.py has those of today).
# The rows of W4A4 are about Linears, attention at 8 bits is the last of them.
_BASES = {
    (8, 8): ["transforms.norm=0", "transforms.qk=false", "transforms.v=false"],
    (4, 8): UNIFORM_ENDS,
    (4, 4): ["attention.bits=4", "attention.softmax_bits=4", *UNIFORM_ENDS],
}
# (weight bits, activation bits): changes of the default recipe, each alone; "" is none
CHANGES: dict[tuple[int, int], tuple[str, ...]] = {
    (8, 8): (
        "",
        "residual=float16",
        "residual=bfloat16",
        _PER_TOKEN,
    ),
    (4, 8): ("", *_GROUPS, _PER_TOKEN, "residual=float16"),
    (4, 4): (
        "",
        *_GROUPS,
        _PER_TOKEN,
        "residual=float16",
        "residual=bfloat16",
        "transforms.fc2=0",
        "transforms.fc2=8",
        "transforms.fc2=16",
        "transforms.fc2=64",
        "attention.softmax_bits=8",
        "attention.bits=8 attention.softmax_bits=8",
    ),
}


def cells() -> Iterator[Cell]:
    """One a scheme, change and seed; W8A8 draws nothing, and has one seed."""
    for (w, a), changes in CHANGES.items():
        for change in changes:
            # weights at their nearest codes: rounding is a choice of its own
            plain = Recipe.preset("qvit", weight_bits=w, activation_bits=a).without_images()
            recipe = plain.override([*_BASES.get((w, a), []), *change.split()])
            for seed in SEEDS if recipe.transforms.norm else SEEDS[:1]:
                words = "-".join(
                    part.rpartition(".")[2].replace("=", "") for part in change.split()
                )
                label = f"decisions-vit_t-w{w}a{a}-{words or 'default'}-seed{seed}"
                seeded = recipe.override([f"seed={seed}"])
                yield label, lambda recipe=seeded, change=change: measure_change(recipe, change)


def measure_change(recipe: Recipe, change: str) -> dict[str, Any]:
    """KL and agreement of a recipe on the development images; `change`: what to call it."""
    found = evaluation.compare(predict_quantized(recipe), expected())
    return {
        "scheme": recipe.scheme,
        "change": change,
        "seed": recipe.seed,
        "kl": found.kl,
        "agreement": found.agreement,
        "images": found.images,
        "images_from": "imagenet/train, odd classes",
    }


def predict_quantized(recipe: Recipe) -> evaluation.Predictions:
    """What the ViT-Tiny says about the development images once it is quantized by a recipe."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "model"
        pipeline.quantize(source(), recipe, out, progress=False)
        model = QuantViT.from_pretrained(out)
        model.warmup()
        return predict(model)


def source() -> zoo.Source:
    """The ViT-Tiny with its weights."""
    return zoo.resolve("vit_t", weights=WEIGHTS)


@lru_cache(maxsize=1)
def expected(limit: int | None = None) -> evaluation.Predictions:
    """What the float model says about the development images; limit: at most so many, spread evenly."""
    return predict(zoo.load(source()), limit)


def predict(model: Callable[[Tensor], Tensor], limit: int | None = None) -> evaluation.Predictions:
    """What whatever answers images says about the development images; limit: at most so many, spread evenly."""
    config = DataConfig.from_pretrained_cfg(source().pretrained_cfg)
    with tempfile.TemporaryDirectory() as folder:
        link_classes(Path(folder), ODD)
        dataset = open_images(folder, config, class_map=SYNSETS, limit=limit)
        return evaluation.predict(model, dataset, progress=False, workers=0)


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, a row a change."""
    lines = ["| scheme | change | KL, mean of the seeds | each | agreement |", "| --- " * 5 + "|"]
    for (scheme, change), group in groupby(found, lambda cell: (cell["scheme"], cell["change"])):
        rows = list(group)
        kls = [row["kl"] for row in rows]
        agreement = statistics.mean(row["agreement"] for row in rows)
        lines.append(
            f"| {scheme} | {change or 'default'} | {statistics.mean(kls):.4f}"
            f" | {', '.join(f'{kl:.4f}' for kl in kls)} | {agreement:.1f} % |"
        )
    return "\n".join(lines)
