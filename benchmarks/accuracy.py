"""ViT-Tiny on real validation images: what each scheme costs without data, and with 128 real images."""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.cells import Cell
from benchmarks.classes import EVEN, SHARED, SYNSETS, link_classes
from benchmarks.searching.limits import limits_of_uniform, starts_of
from benchmarks.sources import source
from qvit import evaluation, pipeline, zoo
from qvit.data import DataConfig, open_images
from qvit.deployment import QuantViT
from qvit.models.timm_import import read_shape
from qvit.recipe import Recipe
from qvit.search.run import allocate
from qvit.synthesis import calibration_images
from qvit_kernels import backends

SEEDS = (0, 1, 2)
# Both ends with as few bits as all that is between them.
UNIFORM_ENDS = ["layers.patch_embed.proj=none", "layers.head=none", "layers.head_dist=none"]
_ATTENTION4 = ["attention.bits=4", "attention.softmax_bits=4"]
# Attention, both ends or both of them with as few bits as the Linears, as some publications have it; and what 3 bits
# have more of than 4, and those ends.
_VARIANTS = {
    "ends4": UNIFORM_ENDS,
    "attention4": _ATTENTION4,
    "all4": [*UNIFORM_ENDS, *_ATTENTION4],
    "uniform": [
        *UNIFORM_ENDS, "activations.norm_group=0", "activations.proj_group=128", "activations.fc2_group=128",
        "activations.prefix_bits=0",
    ],
}  # fmt: skip
# Weights rounded for real images, as with --calib-data: what the same recipe could reach.
_REAL = "real"
# Bits of every layer found within the bytes and BitOps that the scheme takes, as with --bits auto.
_AUTO = "auto"
# More or fewer images, as with --budget.
_BUDGETS = ("quick", "full")
# recipe, weight bits, activation bits, a variant of it
SCHEMES = (
    ("qvit", 8, 8, ""),
    ("qvit", 4, 8, ""),
    ("qvit", 4, 8, _AUTO),
    ("qvit", 4, 8, _REAL),
    ("qvit", 4, 8, "quick"),
    ("qvit", 4, 8, "full"),
    ("qvit", 4, 4, ""),
    ("qvit", 4, 4, "ends4"),
    ("qvit", 4, 4, "attention4"),
    ("qvit", 4, 4, "all4"),
    ("qvit", 4, 4, _AUTO),
    ("qvit", 4, 4, _REAL),
    ("qvit", 4, 4, "quick"),
    ("qvit", 4, 4, "full"),
    ("qvit", 3, 8, ""),
    ("qvit", 3, 8, _AUTO),
    ("qvit", 3, 3, ""),
    ("qvit", 3, 3, _AUTO),
    ("qvit", 3, 3, "uniform"),
    ("qvit", 3, 3, _REAL),
    ("qvit", 2, 8, ""),
    ("qvit", 2, 8, _AUTO),
    ("qvit", 2, 4, ""),
    ("plain", 8, 8, ""),
    ("plain", 4, 4, ""),
)


def cells() -> Iterator[Cell]:
    """One a recipe, scheme and seed; a recipe without transforms draws nothing, and has one seed."""
    for name, w, a, variant in SCHEMES:
        budget = variant if variant in _BUDGETS else None
        recipe = Recipe.preset(name, weight_bits=w, activation_bits=a, budget=budget).override(
            _VARIANTS.get(variant, [])
        )
        for seed in SEEDS if recipe.transforms.norm else SEEDS[:1]:
            seeded = recipe.override([f"seed={seed}"])
            words = [name, f"w{w}a{a}", *([variant] if variant else []), f"seed{seed}"]
            label = "-".join(["accuracy-vit_t", *words])
            measured = {_REAL: _assess_with_real_images, _AUTO: _assess_found}.get(variant, _assess)
            yield label, lambda recipe=seeded, measured=measured: measured(recipe)


def _assess_with_real_images(recipe: Recipe) -> dict[str, Any]:
    """The images are of the even classes of imagenet/train, evenly spread, as many as --calib-data takes."""
    with tempfile.TemporaryDirectory() as folder:
        link_classes(Path(folder), EVEN)
        found = _assess(
            replace(recipe, synthesis=calibration_images(folder, source().pretrained_cfg))
        )
    found["recipe"]["synthesis"]["data"] = "imagenet/train, even classes"
    return found


def _assess_found(recipe: Recipe) -> dict[str, Any]:
    """The bits are found from the weights alone."""
    bits = recipe.weights.bits, recipe.activations.bits
    limits = limits_of_uniform(read_shape(source()), *bits)
    start = time.perf_counter()
    found, search = allocate(source(), starts_of(recipe.seed, limits), limits, progress=False)
    seconds = {"search": round(time.perf_counter() - start, 2)}
    cell = _assess(found)
    return {**cell, "seconds": seconds | cell["seconds"], "search": search}


def _assess(recipe: Recipe) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        written = pipeline.quantize(source(), recipe, out, progress=False)
        model = QuantViT.from_pretrained(out)
        model.warmup()
        found = evaluation.compare(_predict(model), _expected())
    return {
        "model": written["model"],
        "scheme": model.scheme,
        "backend": backends.resolve(model.device),
        **found.to_dict(),
        "recipe": recipe.to_dict(),
        "bytes": written["bytes"],
        "ratio": written["ratio"],
        "sha256": written["sha256"],
        "seconds": written["seconds"],
        "images_from": "imagenet/val, the weights' own preprocessing",
    }


@lru_cache(maxsize=1)
def _expected() -> evaluation.Predictions:
    """What the float model says about the validation images."""
    return _predict(zoo.load(source()))


def _predict(model: Callable[[Tensor], Tensor]) -> evaluation.Predictions:
    config = DataConfig.from_pretrained_cfg(source().pretrained_cfg)
    dataset = open_images(SHARED / "imagenet" / "val", config, class_map=SYNSETS)
    return evaluation.predict(model, dataset, progress=False)


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, a row a cell."""
    lines = [
        "| recipe | scheme | seed | top-1 | 95 % interval | points lost | agreement | KL | size |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell in found:
        low, high = cell["top1_interval"]
        lines.append(
            f"| {cell['recipe']['name']} | {_scheme(cell)} | {cell['recipe']['seed']} "
            f"| {cell['top1']:.2f} | {low:.1f} to {high:.1f} | {_lost(cell)} "
            f"| {cell['agreement']:.1f} | {cell['kl']:.3f} | {100 * cell['ratio']:.1f} % |"
        )
    return "\n".join(lines)


def _lost(cell: dict[str, Any]) -> str:
    between = cell.get("drop_interval")  # cells of before it was measured have none
    return f"{cell['drop']:.2f}" + (
        "" if between is None else f" ({between[0]:.1f} to {between[1]:.1f})"
    )


def _scheme(cell: dict[str, Any]) -> str:
    attention, images = cell["recipe"]["attention"]["bits"], cell["recipe"]["synthesis"]
    words = [cell["scheme"]]
    if cell["recipe"]["budget"] != "standard":
        words.append(cell["recipe"]["budget"])
    if (
        not cell["recipe"]["layers"]
        and cell["recipe"]["name"] == "qvit"
        and cell["scheme"] != "W8A8"
    ):
        words.append("ends alike")
    if attention != 8:
        words.append(f"attention {attention}")
    if images is not None and images["data"]:
        words.append(f"{images['images']} real images")
    return ", ".join(words)
