"""What each part of today's defaults is worth: the default without it, on development images, image by image.

The default itself is measured in the same suite, with weights rounded as `qvit quantize` rounds them, so that a part's
gain is a difference of pairs: the same images, the same seed, with and without.
"""

import math
import statistics
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

from benchmarks.accuracy import UNIFORM_ENDS
from benchmarks.cells import Cell
from benchmarks.development import IMAGES_FROM, expected, predict_quantized
from benchmarks.sources import DEMO, VIT_TINY
from qvit.evaluation import divergences
from qvit.recipe import Recipe

MODELS = (VIT_TINY, DEMO)
SEEDS = (0, 1)
_ENDS = " ".join(UNIFORM_ENDS)
_ROTATIONS = "transforms.qk=false transforms.v=false"
# Parts of several schemes.
_LEAVES = {
    "weights.rounding=nearest synthesis=none": (
        "weights rounded for dead leaves",
        "none; ten seconds",
    )
}
_REFIT = {
    "weights.refit=false": (
        "scales and multipliers chosen as weights are rounded",
        "none; five seconds",
    )
}
_FOUR_BIT_ENDS = {
    _ENDS: ("both ends at 8 bits", "0.7 % of the fp32 file; int8 products are no slower")
}


def _groups(fc1: str) -> dict[str, tuple[str, str]]:
    cost = f"3 % of the file; fc1: {fc1} instructions a step of 128 columns on sm_80, none more on sm_90"
    return {
        "weights.group=0": ("groups of 16 weights", "a multiplication for four weights"),
        "weights.group=32": ("groups of 16 weights, not 32", cost),
    }


_NORM = {"transforms.norm=0": ("Hadamard of 64 after LayerNorms", "as at 8 bits")}
# What training adds: steps of 16 leaves, eleven an epoch (of 60 leaves: three), after GPTQ or in place of it. Its
# control is rounded for the same leaves.
_MORE_LEAVES = "synthesis.images=200"
_EPOCHS = f"{_MORE_LEAVES} distillation=kl distillation.epochs=3"
_LONG = f"{_MORE_LEAVES} distillation=kl distillation.epochs=30"
_FEATURES = "distillation.kl=0 distillation.features=1"
_HEADS = "distillation.lr=1e-4 distillation.heads=10"
_TRAINING = {
    _MORE_LEAVES: ("not taken: rounded for 200 leaves, not 60", "none; 40 seconds"),
    f"{_MORE_LEAVES} weights.rounding=learned": (
        "not taken: learned rounding in place of GPTQ",
        "none; half an hour",
    ),
    f"{_EPOCHS} distillation.lr=1e-3": ("not taken: distilled, KL", "none; three minutes"),
    f"{_EPOCHS} distillation.lr=1e-4": (
        "not taken: distilled, KL, at a tenth of the rate",
        "none; three minutes",
    ),
    f"{_EPOCHS} distillation.lr=1e-4 distillation.temperature=4": (
        "not taken: the same after softer answers, of a temperature of 4",
        "none; three minutes",
    ),
    f"{_EPOCHS} distillation.lr=1e-4 distillation.augment=true": (
        "not taken: the same on crops, mirrored and in other colours",
        "none; three minutes",
    ),
    "distillation=kl distillation.epochs=11 distillation.lr=1e-4": (
        "not taken: distilled, KL, as many steps on the default's 60 leaves",
        "none; three minutes",
    ),
    f"{_EPOCHS} {_FEATURES} distillation.lr=1e-2": (
        "not taken: distilled, outputs of blocks",
        "none; three minutes",
    ),
    f"{_EPOCHS} {_HEADS}": (
        "not taken: distilled, KL and structure of heads",
        "none; three minutes",
    ),
    f"{_LONG} {_HEADS}": (
        "not taken: the same for ten times the steps",
        "none; a quarter of an hour",
    ),
    f"{_EPOCHS} weights.rounding=learned distillation.lr=1e-3": (
        "not taken: learned rounding, then distilled, KL",
        "none; half an hour",
    ),
}
# (weight bits, activation bits): the change that takes a part out, or puts one in that was left out -> what the part
# is, and what it costs a ViT-Tiny
CHANGES: dict[tuple[int, int], dict[str, tuple[str, str]]] = {
    (8, 8): {
        _ROTATIONS: ("rotations of Q and K, and of V", "none, folded offline"),
        "transforms.norm=0": (
            "Hadamard of 64 after LayerNorms",
            "10 of 27 instructions a value of ln_quant, which memory bounds; 2 % of the time on a CPU",
        ),
        "transforms.fc2=32": (
            "not taken: Hadamard of 32 before fc2",
            "9 of 37 instructions a value of fc1's epilogue; 4 % of the time on a CPU",
        ),
    },
    (4, 8): {
        **_LEAVES,
        **_FOUR_BIT_ENDS,
        **_REFIT,
        **_groups("263, not 230"),
        **_NORM,
        _MORE_LEAVES: _TRAINING[_MORE_LEAVES],
        **{c: _TRAINING[c] for c in (f"{_EPOCHS} distillation.lr=1e-4", f"{_LONG} {_HEADS}")},
    },
    (4, 4): {
        **_LEAVES,
        **_REFIT,
        **_FOUR_BIT_ENDS,
        "attention.bits=4 attention.softmax_bits=4": ("attention at 8 bits", "none"),
        **_groups("440, not 402"),
        "weights.range=minmax": ("clipping of weights by their squared error", "none"),
        **_NORM,
        "transforms.fc2=0": (
            "Hadamard of 32 before fc2",
            "9 of 37 instructions a value of fc1's epilogue",
        ),
        _ROTATIONS: ("rotations of Q and K, and of V", "none, folded offline"),
        "activations.prefix_bits=8": (
            "not taken: class token at 8 bits",
            "activations no longer packed, twice their bytes",
        ),
        **_TRAINING,
    },
    (3, 3): {
        **_LEAVES,
        **_REFIT,
        _ENDS: ("both ends at 8 bits", "1 % of the fp32 file"),
        "activations.prefix_bits=0": (
            "class token at 8 bits",
            "3-bit activations not packed, twice their bytes",
        ),
        "weights.group=32": ("groups of 16 weights, not 32", "a byte for 16 weights, not 32"),
        "activations.norm_group=0": (
            "groups of 64 after LayerNorms",
            "qkv and fc1 rescale three sums, not one",
        ),
        "activations.fc2_group=128": (
            "groups of 64 before fc2, not 128",
            "fc2 rescales twelve sums, not six",
        ),
    },
}


def cells() -> Iterator[Cell]:
    """The default of each scheme, then a cell a change, for each model and seed."""
    for model, seed in product(MODELS, SEEDS):
        for (w, a), changes in CHANGES.items():
            for change in ("", *changes):
                settings = [f"seed={seed}", *change.split()]
                recipe = Recipe.preset("qvit", weight_bits=w, activation_bits=a).override(settings)
                words = "-".join(p.rpartition(".")[2].replace("=", "") for p in change.split())
                label = f"ablations-{model}-w{w}a{a}-{words or 'default'}-seed{seed}"
                yield label, partial(_measure, model, recipe, change)


def _measure(model: str, recipe: Recipe, change: str) -> dict[str, Any]:
    predictions, learned = predict_quantized(recipe, model)
    ours, theirs = predictions.logits, expected(model).logits
    kls = divergences(theirs, ours)
    same = ours.argmax(-1) == theirs.argmax(-1)
    return {
        "model": model,
        "bits": [recipe.weights.bits, recipe.activations.bits],
        "change": change,
        "seed": recipe.seed,
        "kl": kls.mean().item(),
        "kl_each": [round(value, 6) for value in kls.tolist()],
        "agreement": 100 * same.float().mean().item(),
        "images": len(kls),
        "training": learned,
        "images_from": IMAGES_FROM[model],
    }


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, a row a change: gains of the part in KL, the default's beside them; of training, those of the default
    with as many leaves. Pairs are of processors of a kind.
    """
    lines = ["| model | scheme | part | KL with it, without | gain, each seed | agreement | cost |"]
    lines.append("| --- " * 7 + "|")
    for model, (bits, changes) in product(MODELS, CHANGES.items()):
        of_scheme = [c for c in found if (c["model"], *c["bits"]) == (model, *bits)]
        by_change = {(c["change"], *_circumstances(c)): c for c in of_scheme}
        for change, (part, cost) in changes.items():
            control = _MORE_LEAVES if change.startswith(f"{_MORE_LEAVES} ") else ""
            rows = [c for c in of_scheme if c["change"] == change]
            keys = [(control, *_circumstances(row)) for row in rows]
            pairs = [
                (by_change[k], row) for k, row in zip(keys, rows, strict=True) if k in by_change
            ]
            if not pairs:
                continue
            if part.startswith("not taken"):  # here the change is the part
                pairs = [(row, default) for default, row in pairs]
            lines.append(
                f"| {model} | W{bits[0]}A{bits[1]} | {part} | {_mean(pairs, 0, 'kl', 4)}, {_mean(pairs, 1, 'kl', 4)} "
                f"| {', '.join(_gain(*pair) for pair in pairs)} "
                f"| {_mean(pairs, 0, 'agreement', 1)}, {_mean(pairs, 1, 'agreement', 1)} % "
                f"| {cost if model == VIT_TINY else ''} |"
            )
    return "\n".join(lines)


def _circumstances(cell: dict[str, Any]) -> tuple[int, bool]:
    """What a pair has in common: the seed, and whether the processor has VNNI, whose last bits are others."""
    features = cell.get("machine", {}).get("cpu_features", ())
    return cell["seed"], any("vnni" in feature for feature in features)


def _mean(
    pairs: list[tuple[dict[str, Any], dict[str, Any]]], which: int, name: str, digits: int
) -> str:
    return f"{statistics.mean(pair[which][name] for pair in pairs):.{digits}f}"


def _gain(with_it: dict[str, Any], without: dict[str, Any]) -> str:
    """The mean difference over images and its 95 % interval: 0.0365 +- 0.0120."""
    gains = [b - a for a, b in zip(with_it["kl_each"], without["kl_each"], strict=True)]
    half = 1.96 * statistics.stdev(gains) / math.sqrt(len(gains))
    return f"{statistics.mean(gains):.4f} +- {half:.4f}"
