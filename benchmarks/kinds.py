"""Images of every kind whose worth is compared: photographs, noise, dead leaves, what methods make, and what is chosen
from these, mixed or made of fewer.
"""

import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.classes import EVEN, link_classes
from benchmarks.sources import float_vit, source
from qvit import synthesis
from qvit.data import DataConfig
from qvit.distillation import Pool
from qvit.distillation.augmentation import augment
from qvit.models.floating import Float
from qvit.recipe import Synthesis
from qvit.synthesis.seeds import generator_for

# With what is measured of them 3.5 to 5 minutes of a busy core, where leaves take less than one.
_QUICK = {"iterations": 100}
# Drawn for each image that is chosen.
_CHOICE = 10


def draw(kind: str, seed: int, count: int) -> Tensor:
    """Normalised images [count, 3, H, W] for the ViT-Tiny, of a kind of KINDS."""
    return KINDS[kind](seed, count)


def photographs(seed: int, count: int, *, classes: int) -> Tensor:
    """An image of each of so many classes, drawn by the seed. classes: `benchmarks.classes.EVEN` or `ODD`."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        link_classes(data, classes)
        names = sorted(path.name for path in data.iterdir())
        for name in set(names).difference(random.Random(seed).sample(names, count)):
            (data / name).unlink()
        given = synthesis.calibration_images(str(data), source().pretrained_cfg, most=count)
        return _synthesized(given, seed)


def _made(seed: int, count: int, *, method: str, **changes: Any) -> Tensor:
    """By a method; changes: what differs from its preset."""
    return _synthesized(Synthesis.preset(method, images=count, batch=count, **changes), seed)


def _synthesized(settings: Synthesis, seed: int) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "images"
        synthesis.synthesize(source(), settings, out, seed=seed, progress=False)
        return Pool.read(out).images.float()


def _mixed(seed: int, count: int, *, kinds: tuple[str, ...]) -> Tensor:
    """Of several kinds in equal parts."""
    return torch.cat([draw(kind, seed, _share(count, len(kinds))) for kind in kinds])


def _share(count: int, parts: int) -> int:
    if count % parts:
        raise ValueError(f"{count} images are not {parts} equal parts")
    return count // parts


@torch.no_grad()
def _chosen(seed: int, count: int, *, kind: str, sure: bool) -> Tensor:
    """Of ten times as many those of which the float model is most, or least, sure."""
    images = draw(kind, seed, _CHOICE * count)
    asked = [float_vit()(some, Float()) for some in images.split(count)]
    confidence = torch.cat(asked).softmax(-1).amax(-1)
    return images[confidence.argsort(descending=sure)[:count]]


def _augmented(seed: int, count: int, *, kind: str, distinct: int) -> Tensor:
    """Crops, mirror images and other colours of so many images, each as often."""
    images = draw(kind, seed, distinct).repeat(_share(count, distinct), 1, 1, 1)
    config = DataConfig.from_pretrained_cfg(source().pretrained_cfg)
    return torch.cat([
        augment(image, config.mean, config.std, generator_for(seed, "augmentation", i))
        for i, image in enumerate(images.split(1))
    ])  # fmt: skip


# kind -> (seed, count) -> images
KINDS: dict[str, Callable[[int, int], Tensor]] = {
    "real": partial(photographs, classes=EVEN),
    "noise": partial(_made, method="noise"),
    "leaves": partial(_made, method="leaves"),
    "mimiq": partial(_made, method="mimiq", **_QUICK),
    "psaq": partial(_made, method="psaq", **_QUICK),
    "psaq-leaves": partial(_made, method="psaq", start="leaves", **_QUICK),
    "leaves-mimiq": partial(_mixed, kinds=("leaves", "mimiq")),
    "leaves-psaq": partial(_mixed, kinds=("leaves", "psaq")),
    # how sure of its class a model is: with no term for classes, and leaves chosen by it
    "psaq-unclassed": partial(_made, method="psaq", classes=0.0, **_QUICK),
    "leaves-unsure": partial(_chosen, kind="leaves", sure=False),
    "leaves-sure": partial(_chosen, kind="leaves", sure=True),
    # diversity by itself: as many images, of sixteen and of four
    "leaves-augmented": partial(_augmented, kind="leaves", distinct=16),
    "leaves-few": partial(_augmented, kind="leaves", distinct=4),
    "real-augmented": partial(_augmented, kind="real", distinct=16),
    "real-few": partial(_augmented, kind="real", distinct=4),
    # as many steps as published, 1000 (23 minutes of a core with what is measured of them) and 2000
    "psaq-finished": partial(_made, method="psaq"),
    "mimiq-finished": partial(_made, method="mimiq"),
}
