"""Rows: which combinations of images, training, quantizer and bits are compared, and what each setting is."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.comparison.budgets import Budget
from qvit.recipe import Distillation, Recipe, Reconstruction

SCHEMES = {"w4a4": (4, 4), "w4a8": (4, 8), "w3a3": (3, 3)}
QUANTIZERS = ("static", "dynamic")
_STATIC = {
    "static": ("static=lsq", "static.start=mse"),
    "softmax-float": ("static=lsq", "static.start=mse", "static.softmax=float"),
    "softmax-log2": ("static=lsq", "static.start=mse", "static.softmax=log2"),
    "minmax": ("static=minmax", "static.softmax=float"),
}
# One rate for all. KL of the static demo ViT on development pictures after 56 steps on 128 images, rates of 1e-3, 1e-2,
# 3e-2: MimiQ's 0.378, 0.376, 0.557 (0.412 before), real ones 0.166, 0.428, 3.6 (0.293 before). Of the ResNet after 60
# steps on 64, rates of 1e-4, 3e-4, 1e-3: noise 0.078, 0.126, 3.59 (0.093 before), statistics 0.073, 0.066, 0.076
# (0.079), the generator's 0.068, 0.074, 0.055 (0.073), real ones 0.075, 0.072, 0.065 (0.073).
_LR = 1e-3
TRAININGS: dict[str, dict[str, Any]] = {
    "none": {},
    "kl": {"method": "kl", "lr": _LR},
    "kl-classes": {"method": "kl-classes", "lr": _LR},
    "kl-inundation": {"method": "kl", "lr": _LR, "inundation": 1e-3},
    "mimiq": {"method": "mimiq", "lr": _LR},
    "ait": {"method": "ait", "inundation": 1e-3},
}
# Nothing is trained but the rounding of weights, block after block: see qvit/distillation/reconstruction.py.
RECONSTRUCTION = "reconstruction"
# Images and training are one: see together.py. The second needs attention.
TOGETHER = ("psaq-v2", "maskaq")
VIT_IMAGES = ("noise", "psaq", "mimiq", "sardfq", "acq", "real-32", "real-500")
# MimiQ and PSAQ-ViT without their terms, with the other's, without colour jitter, with more weight on total variation.
CONTROLS = (
    "psaq-classes",
    "psaq-heads",
    "mimiq-still",
    "mimiq-classes",
    "mimiq-entropy",
    "mimiq-smooth",
)
RESNET_IMAGES = ("noise", "bns", "acq", "acq-unconditional", "acq-label", "real-32", "real-500")


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison, to be measured once a seed."""

    images: str
    training: str
    quantizer: str
    scheme: str

    @property
    def name(self) -> str:
        """For the file of its cell."""
        return f"{self.images}-{self.training}-{self.quantizer}-{self.scheme}"


def rows(convolutional: bool) -> Iterator[Row]:
    """All of the table, what matters most first."""
    images = RESNET_IMAGES if convolutional else VIT_IMAGES
    synthetic = RESNET_IMAGES[:4] if convolutional else ("noise", "psaq", "mimiq")
    own = images[1] if convolutional else "mimiq"
    for quantizer in ("static",) if convolutional else QUANTIZERS:
        for training in ("none", "kl"):
            for method in images:
                yield Row(method, training, quantizer, "w4a4")
    for training in ("kl-classes", "kl-inundation", "ait", "mimiq"):
        if not (convolutional and training == "mimiq"):  # a ResNet has no heads
            yield Row(own, training, "static", "w4a4")
    for quantizer in ("static",) if convolutional else QUANTIZERS:
        for method in TOGETHER[: 1 if convolutional else 2]:
            yield Row(method, "own", quantizer, "w4a4")
    if not convolutional:
        for quantizer in ("softmax-float", "softmax-log2", "minmax"):
            for method in ("noise", "psaq", "mimiq", "real-32"):
                yield Row(method, "none", quantizer, "w4a4")
        for quantizer in QUANTIZERS:
            for method in ("noise", "psaq", "mimiq", "real-32"):
                yield Row(method, RECONSTRUCTION, quantizer, "w4a4")
        for training in ("none", "kl"):
            for method in CONTROLS:
                yield Row(method, training, "static", "w4a4")
    for scheme in ("w3a3", "w4a8"):
        for training in ("none", "kl"):
            for method in synthetic:
                yield Row(method, training, "static", scheme)
    # The demo ResNet loses a point and a half at 4 bits, too little to tell methods apart by.
    if convolutional:
        for training in ("none", "kl"):
            yield Row("real-32", training, "static", "w3a3")
        for training in ("kl-classes", "kl-inundation", "ait"):
            yield Row(own, training, "static", "w3a3")


def recipe_of(row: Row, seed: int) -> Recipe:
    """What the student is. Static: minimum and maximum of weights, LSQ from the least squared error for the rest;
    "softmax-float" and "softmax-log2": the same with softmax outputs in float, or as powers of two; "minmax": minimum
    and maximum of everything and softmax outputs in float, as PSAQ-ViT has it.
    """
    weight_bits, activation_bits = SCHEMES[row.scheme]
    bits: dict[str, Any] = {"weight_bits": weight_bits, "activation_bits": activation_bits}
    if row.quantizer == "dynamic":
        return Recipe.preset("qvit", **bits).without_images().override([f"seed={seed}"])
    settings = [f"seed={seed}", *_STATIC[row.quantizer]]
    return Recipe.preset("plain", **bits).override(settings)


def reconstruction_of(budget: Budget, images: int) -> Reconstruction:
    """How its rounding is learned: as many steps a block as others train the whole model; learned scales, too."""
    return Reconstruction(
        steps=budget.steps, batch=min(budget.batch, images), lr=0.1, scale_lr=1e-3
    )


def training_of(row: Row, budget: Budget, images: int) -> Distillation | None:
    """How it is trained: so many steps, however many images there are; None for calibration alone, and where
    images and training are one.
    """
    changes = dict(TRAININGS.get(row.training, {}))
    if not changes:
        return None
    method = changes.pop("method")
    trained = images - max(1, round(0.1 * images))
    batch = min(budget.batch, trained)
    epochs = max(1, round(budget.steps / max(1, trained // batch)))
    return Distillation.preset(
        method, **{"epochs": epochs, "batch": batch, "holdout": 0.1, **changes}
    )
