"""What an image is worth: what the float ViT-Tiny makes of noise, synthetic and real images, layer by layer, and what
weights are worth that were rounded for them.

Every kind has as many images. References are of the odd classes of imagenet/train, real images that are compared with
them of the even ones.
"""

import math
import statistics
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.cells import Cell
from benchmarks.classes import ODD
from benchmarks.development import expected, predict
from benchmarks.kinds import KINDS, draw, photographs
from benchmarks.looking import find_moments, look, output_error
from benchmarks.sources import VIT_TINY, float_vit
from qvit import evaluation, synthesis
from qvit.deployment import QuantViT
from qvit.deployment.conversion import to_integers
from qvit.models.calibration import set_weight_ranges
from qvit.models.dense import Dense
from qvit.models.folding import fold
from qvit.models.plan import plan_scheme
from qvit.models.rounding import round_weights
from qvit.models.vit import ViT
from qvit.quant.schemes import ModelScheme
from qvit.recipe import Recipe

IMAGES, REFERENCES = 16, 48
SEEDS = (0, 1)
NONE = "none"  # of all: weights at their nearest codes, where damping says nothing
# Weight bits, activation bits, damping: GPTQ's usual, and the default's
ROUNDINGS = ((4, 4, 0.01), (4, 4, 0.3), (3, 3, 0.3))
_ASKED = 250  # development images
STATISTICS = ("range", "patch_norm", "class_norm", "attention_entropy", "class_share")


def cells() -> Iterator[Cell]:
    """One a kind of images and seed; each takes up to ten minutes of a core, but finished ones."""
    for seed in SEEDS:
        yield f"image-worth-vit_t-{NONE}-seed{seed}", partial(_measure_nearest, seed)
        for kind in KINDS:
            yield f"image-worth-vit_t-{kind}-seed{seed}", partial(_measure, kind, seed)


def _measure_nearest(seed: int) -> dict[str, Any]:
    rounding = {_name(*rounding): _round(None, seed, *rounding) for rounding in ROUNDINGS[1:]}
    return {"kind": NONE, "seed": seed, "images": 0, "rounding": rounding}


def _name(w: int, a: int, damping: float) -> str:
    return f"W{w}A{a}, damping {damping:g}"


def _measure(kind: str, seed: int) -> dict[str, Any]:
    images = draw(kind, seed, IMAGES)
    seen = synthesis.measure(float_vit(), images)
    return {
        "kind": kind,
        "seed": seed,
        "images": len(images),
        "confidence": seen["confidence"],
        "total_variation": seen["total_variation"],
        # by place; with the same of the references, over which a table takes its ratios
        "statistics": look(float_vit(), images),
        "references": _reference(),
        "rounding": {_name(*rounding): _round(images, seed, *rounding) for rounding in ROUNDINGS},
    }


@lru_cache(maxsize=1)
def _references() -> Tensor:
    return photographs(0, REFERENCES, classes=ODD)


@lru_cache(maxsize=1)
def _reference() -> dict[str, list[float]]:
    return look(float_vit(), _references())


@lru_cache(maxsize=2)
def _reference_moments(seed: int, w: int, a: int) -> list[Tensor]:
    """Of each Linear's inputs, in the basis of its transform, in the order of the pass."""
    folded, _ = _fold(seed, w, a)
    return list(find_moments(folded, _references()).values())


def _fold(seed: int, w: int, a: int) -> tuple[ViT, ModelScheme]:
    scheme = plan_scheme(
        float_vit().config, Recipe.preset("qvit", weight_bits=w, activation_bits=a)
    )
    return fold(float_vit(), scheme, seed=seed), scheme


@torch.no_grad()
def _round(images: Tensor | None, seed: int, w: int, a: int, damping: float) -> dict[str, Any]:
    """What rounding for these images does: to each Linear's output on the references, beside rounding to nearest, and
    to the whole model's answers on the development images. Without images, nearest it is.
    """
    folded, scheme = _fold(seed, w, a)
    linears = [module for module in folded.blocks.modules() if isinstance(module, Dense)]
    moments = dict(zip(linears, _reference_moments(seed, w, a), strict=True))
    before = {dense: dense.weight.clone() for dense in linears}
    set_weight_ranges(folded)
    nearest = {d: output_error(_nearest(d) - before[d], moments[d]) for d in moments}
    if images is None:
        for dense in moments:
            dense.weight.copy_(_nearest(dense))
    else:
        round_weights(folded, images, damping)
    errors = [output_error(d.weight - before[d], moments[d]) / nearest[d] for d in moments]
    model = QuantViT(to_integers(folded, scheme), {})
    with warnings.catch_warnings():  # of a machine without the compiled path
        warnings.simplefilter("ignore", RuntimeWarning)
        model.warmup()
    found = evaluation.compare(predict(model, VIT_TINY, _ASKED), expected(VIT_TINY, _ASKED))
    return {
        "errors": errors,
        "kl": found.kl,
        "agreement": found.agreement,
        "images": found.images,
    }


def _nearest(dense: Dense) -> Tensor:
    """What a Linear's weights are as codes."""
    return dense.quantized_weight().values()


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers; of ratios, twice and half cancel."""
    return math.exp(statistics.fmean(map(math.log, values)))


def distance(values: Sequence[float], references: Sequence[float]) -> float:
    """How many times too large or too small values are, the geometric mean over places; 1: none is."""
    return geometric_mean([max(a, b) / min(a, b) for a, b in zip(values, references, strict=True)])


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, a row a kind: how far its statistics are from the references', and what rounding for it leaves."""
    roundings = [_name(*rounding) for rounding in ROUNDINGS]
    heads = ["images", "confidence", "TV", *(name.replace("_", " ") for name in STATISTICS)]
    heads += [f"{what}, {name}" for name in roundings for what in ("error", "KL")]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for kind in (NONE, *KINDS):
        group = [cell for cell in found if cell["kind"] == kind]
        if not group:
            continue
        seen = ["-"] * (2 + len(STATISTICS)) if kind == NONE else _show_looks(group)
        cells = [*seen, *(text for name in roundings for text in _show_rounding(group, name))]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _show_looks(group: list[dict[str, Any]]) -> list[str]:
    far = [
        geometric_mean([distance(c["statistics"][name], c["references"][name]) for c in group])
        for name in STATISTICS
    ]
    means = [statistics.fmean(c[name] for c in group) for name in ("confidence", "total_variation")]
    return [f"{value:.2f}" for value in (*means, *far)]


def _show_rounding(group: list[dict[str, Any]], name: str) -> tuple[str, str]:
    each = [cell["rounding"][name] for cell in group if name in cell["rounding"]]
    if not each:
        return "-", "-"
    left = geometric_mean([geometric_mean(one["errors"]) for one in each])
    return f"{left:.2f}", ", ".join(f"{one['kl']:.3f}" for one in each)
