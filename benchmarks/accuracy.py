"""ViT-Tiny, quantized without data, on real validation images: what each scheme costs."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.cells import ROOT, Cell
from qvit import pipeline, zoo
from qvit.evaluation.assessment import Images, assess_folder
from qvit.recipe import Recipe

SHARED = ROOT.parent / "shared"
WEIGHTS = SHARED / "models" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"
SEEDS = (0, 1, 2)
# Attention with as few bits as the Linears, as publications have it.
_NARROW = {"attention4": ["attention.bits=4", "attention.softmax_bits=4"]}
# recipe, weight bits, activation bits, a variant of it
SCHEMES = (
    ("qvit", 8, 8, ""),
    ("qvit", 4, 8, ""),
    ("qvit", 4, 4, ""),
    ("qvit", 4, 4, "attention4"),
    ("qvit", 3, 3, ""),
    ("plain", 8, 8, ""),
    ("plain", 4, 4, ""),
)


def cells() -> Iterator[Cell]:
    """One a recipe, scheme and seed; a recipe without transforms draws nothing, and has one seed."""
    for name, w, a, variant in SCHEMES:
        recipe = Recipe.preset(name, weight_bits=w, activation_bits=a).override(
            _NARROW.get(variant, [])
        )
        for seed in SEEDS if recipe.transforms.norm else SEEDS[:1]:
            seeded = recipe.override([f"seed={seed}"])
            words = [name, recipe.scheme.lower(), *([variant] if variant else []), f"seed{seed}"]
            label = "-".join(["accuracy-vit_t", *words])
            yield label, lambda recipe=seeded: _assess(recipe)


def _assess(recipe: Recipe) -> dict[str, Any]:
    images = Images(
        data=str(SHARED / "imagenet" / "val"), class_map=str(SHARED / "imagenet" / "synsets.txt")
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        source = zoo.resolve("vit_t", weights=WEIGHTS)
        written = pipeline.quantize(source, recipe, out, progress=False)
        result = assess_folder(out, images, progress=False)
    del result["folder"]
    return {
        **result,
        "drop": result["float"]["top1"] - result["top1"],
        "recipe": recipe.to_dict(),
        "bytes": written["bytes"],
        "ratio": written["ratio"],
        "sha256": written["sha256"],
        "seconds": written["seconds"],
        "images_from": "imagenet/val, the weights' own preprocessing",
    }


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, a row a cell."""
    lines = [
        "| recipe | scheme | seed | top-1 | 95 % interval | drop | agreement | KL | size |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell in found:
        low, high = cell["top1_interval"]
        lines.append(
            f"| {cell['recipe']['name']} | {_scheme(cell)} | {cell['recipe']['seed']} "
            f"| {cell['top1']:.2f} | {low:.1f} to {high:.1f} | {cell['drop']:.2f} "
            f"| {cell['agreement']:.1f} | {cell['kl']:.3f} | {100 * cell['ratio']:.1f} % |"
        )
    return "\n".join(lines)


def _scheme(cell: dict[str, Any]) -> str:
    attention = cell["recipe"]["attention"]["bits"]
    return cell["scheme"] if attention == 8 else f"{cell['scheme']}, attention {attention}"
