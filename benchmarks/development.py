"""Development images, which designs are chosen by, and what models say about them.

The ViT-Tiny's are of the odd classes of imagenet/train; those of the packaged models are a series of pictures that
neither training nor tests have seen.
"""

import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.classes import EVEN, ODD, SYNSETS, link_classes
from benchmarks.comparison.subjects import DEV_SEED
from benchmarks.demo.rendered import normalise, render_series
from benchmarks.sources import DEMO, VIT_TINY, source
from qvit import evaluation, pipeline, zoo
from qvit.data import DataConfig, open_images
from qvit.deployment import QuantViT
from qvit.evaluation import Predictions
from qvit.recipe import Recipe

IMAGES_FROM = {VIT_TINY: "imagenet/train, odd classes", DEMO: f"rendered, series {DEV_SEED}"}
# Halves of the ViT-Tiny's classes: 1000 images, where nothing was calibrated with real ones.
BOTH = EVEN, ODD
_PICTURES = 1000


@lru_cache(maxsize=2)
def expected(
    name: str = VIT_TINY, limit: int | None = None, halves: tuple[int, ...] = (ODD,)
) -> Predictions:
    """What the float model says, see `predict`."""
    return predict(zoo.load(source(name)), name, limit, halves)


def predict_quantized(
    recipe: Recipe, name: str = VIT_TINY
) -> tuple[Predictions, dict[str, Any] | None]:
    """What a model says once it is quantized by a recipe, and what came of its training, if there was any."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "model"
        training = pipeline.quantize(source(name), recipe, out, progress=False).get("training")
        found = None if training is None else {k: v for k, v in training.items() if k != "path"}
        model = QuantViT.from_pretrained(out)
        model.warmup()
        return predict(model, name), found


def predict(
    model: Callable[[Tensor], Tensor],
    name: str = VIT_TINY,
    limit: int | None = None,
    halves: tuple[int, ...] = (ODD,),
) -> Predictions:
    """What whatever answers images says; limit: at most so many images, spread evenly. halves: Of the ViT-Tiny's
    classes.
    """
    if name == DEMO:
        return _predict_rendered(model, limit or _PICTURES)
    config = DataConfig.from_pretrained_cfg(source(name).pretrained_cfg)
    with tempfile.TemporaryDirectory() as folder:
        for half in halves:
            link_classes(Path(folder), half)
        dataset = open_images(folder, config, class_map=SYNSETS, limit=limit)
        return evaluation.predict(model, dataset, progress=False, workers=0)


@torch.inference_mode()
def _predict_rendered(model: Callable[[Tensor], Tensor], count: int) -> Predictions:
    series = render_series(DEV_SEED, count)
    parts = [model(some).float() for some in normalise(series.images).split(50)]
    return Predictions(torch.cat(parts), series.labels, torch.arange(count), skipped=0)
