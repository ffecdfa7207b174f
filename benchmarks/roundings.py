"""What images are worth to the rounding of weights: KL to the float ViT-Tiny, by source of the images and damping.

Real images are of the even classes of imagenet/train, development images of the odd ones.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cells import Cell
from benchmarks.classes import EVEN, link_classes
from benchmarks.decisions import measure_change, table
from qvit.recipe import Recipe
from qvit.synthesis import calibration_images
from qvit.zoo import resolve

__all__ = ["cells", "table"]

SEEDS = (0, 1)
SCHEMES = ((4, 8), (4, 4), (3, 3))
_IMAGES = 60  # of the default at the standard budget
REAL = "real"
# Images, damping
ROWS = (
    ("none", 0.0),
    ("leaves", 0.01), ("leaves", 0.1), ("leaves", 0.3), ("leaves", 1.0),
    ("noise", 0.01), ("noise", 0.3),
    (REAL, 0.01), (REAL, 0.3),
)  # fmt: skip


def cells() -> Iterator[Cell]:
    """One a scheme, kind of images, damping and seed."""
    for w, a in SCHEMES:
        for images, damping in ROWS:
            for seed in SEEDS:
                label = f"roundings-vit_t-w{w}a{a}-{images}-{damping:g}-seed{seed}"
                work = (
                    Recipe.preset("qvit", weight_bits=w, activation_bits=a).with_open_ends(),
                    images,
                    damping,
                    seed,
                )
                yield label, lambda work=work: _measure(*work)


def _measure(recipe: Recipe, images: str, damping: float, seed: int) -> dict[str, Any]:
    recipe = replace(recipe, seed=seed)
    if images == "none":
        return measure_change(recipe.without_images(), "nearest")
    recipe = replace(recipe, weights=replace(recipe.weights, damping=damping))
    name = f"{images}, damping {damping:g}"
    if images != REAL:
        settings = [f"synthesis={images}", f"synthesis.images={_IMAGES}"]
        return measure_change(recipe.override(settings), name)
    with tempfile.TemporaryDirectory() as folder:
        link_classes(Path(folder), EVEN)
        given = calibration_images(folder, resolve("vit_t").pretrained_cfg, most=_IMAGES)
        return measure_change(replace(recipe, synthesis=given), name)
