"""The images that a quantized model was rounded for or trained on: some of them, found beside it or drawn again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvit.deployment.checkpoint import RECIPE
from qvit.errors import InputError
from qvit.kept import images_beside
from qvit.recipe import Recipe, Synthesis, load_recipe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qvit.zoo import Source

_SHOWN = 8
_SIDE = 128  # pixels that a picture has on the page at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What is known of the images.

    Attributes:
        settings: How they were made.
        seed: Of the run.
        rounded: Whether weights were rounded for them.
        trained: Whether the low-bit model was trained on them.
        fingerprint: Of the run that made them; None where they were made while the model was trained.
        pixels: uint8 [n, H, W, 3], some of them; None where they are gone, or were never to be shown.
        folder: Where they lie; None where they do not.
    """

    settings: Synthesis
    seed: int
    rounded: bool
    trained: bool
    fingerprint: str | None = None
    pixels: "NDArray[np.uint8] | None" = None
    folder: Path | None = None


def find_samples(path: Path, run: Mapping[str, Any], source: "Source") -> Samples | None:
    """Of the model in the folder `path`; None where it learned from no images, or does not say how it was made.

    Images that cost something lie beside the model; leaves and noise are the seed's alone. The user's own are not
    looked for: whoever sends the page on would send them, too.
    """
    if not (path / RECIPE).is_file():
        return None
    recipe = load_recipe(str(path / RECIPE))
    rounded, trained = recipe.weights.rounding != "nearest", recipe.distillation is not None
    if recipe.synthesis is None or not (rounded or trained):
        return None
    recorded = run.get("images") or {}
    folder = _find_folder(path, recorded) if recipe.synthesis.optimised else None
    return Samples(
        settings=recipe.synthesis,
        seed=recipe.seed,
        rounded=rounded,
        trained=trained,
        fingerprint=recorded.get("fingerprint"),
        pixels=_read(folder, source) if folder is not None else _redraw(recipe, source),
        folder=folder,
    )


def _find_folder(path: Path, recorded: Mapping[str, Any]) -> Path | None:
    """Where the images of this very run lie, complete: beside the model, or where they were made."""
    from qvit.synthesis import shards

    places = [images_beside(path.resolve())]
    places += [Path(recorded["path"])] if recorded.get("path") else []
    for place in places:
        try:
            manifest = shards.open_images(place).manifest
        except InputError:
            continue  # gone, or others
        if manifest["fingerprint"] == recorded.get("fingerprint"):
            return place
    return None


def _read(folder: Path, source: "Source") -> "NDArray[np.uint8]":
    from qvit.report.gathering import sample
    from qvit.synthesis import shards

    return _as_pixels(sample(shards.open_images(folder), _SHOWN)[0], source)


def _redraw(recipe: Recipe, source: "Source") -> "NDArray[np.uint8] | None":
    import torch

    from qvit import zoo
    from qvit.models.networks import read_network_config
    from qvit.synthesis.leaves import redraw_pictures

    images = recipe.synthesis
    if images is None or images.method != "leaves":
        return None
    with torch.device("meta"):
        config = read_network_config(zoo.build(source), source.pretrained_cfg)
    count = min(_SHOWN, images.images, images.batch)
    return _as_pixels(redraw_pictures(config, count, recipe.seed), source)


def _as_pixels(images: Any, source: "Source") -> "NDArray[np.uint8]":
    import numpy as np

    from qvit.report.pictures import shrink, to_pixels

    cfg = source.pretrained_cfg
    pixels = to_pixels(images, cfg["mean"], cfg["std"])
    if pixels.shape[-1] == 1:
        pixels = pixels.repeat(3, -1)
    return np.stack([shrink(each, _SIDE) for each in pixels])
