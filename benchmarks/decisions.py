"""What the parts of the default scheme are worth: KL to the float ViT-Tiny on development images, a change at a time.

The development images are those of the odd classes of imagenet/train, which is where designs are chosen.
"""

import statistics
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from benchmarks.accuracy import SEEDS, UNIFORM_ENDS
from benchmarks.cells import Cell
from benchmarks.development import IMAGES_FROM, expected, predict_quantized
from benchmarks.sources import VIT_TINY
from qvit import evaluation
from qvit.recipe import Recipe

_GROUPS = tuple(f"weights.group={size}" for size in (0, 64, 16))
_PER_TOKEN = "activations.proj_group=0 activations.fc2_group=0"
# What every recipe of a scheme has: the defaults of the time when these were decided (ablations.py has those of today).
# The rows of W4A4 are about Linears, attention at 8 bits is the last of them.
_BASES = {
    (8, 8): ["transforms.norm=0", "transforms.qk=false", "transforms.v=false"],
    (4, 8): ["weights.group=32", *UNIFORM_ENDS],
    (4, 4): ["weights.group=32", "attention.bits=4", "attention.softmax_bits=4", *UNIFORM_ENDS],
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
    found = evaluation.compare(predict_quantized(recipe)[0], expected())
    return {
        "scheme": recipe.scheme,
        "change": change,
        "seed": recipe.seed,
        "kl": found.kl,
        "agreement": found.agreement,
        "images": found.images,
        "images_from": IMAGES_FROM[VIT_TINY],
    }


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
