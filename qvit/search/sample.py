"""What bits are trained on: dead leaves, or the user's own images, with labels where these are wanted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qvit.errors import UsageError
from qvit.models.config import ViTConfig
from qvit.recipe import Recipe
from qvit.synthesis.folder import UserImages
from qvit.synthesis.leaves import draw_pictures

_LEAVES = 128


@dataclass(frozen=True, slots=True)
class Sample:
    """images: Normalised fp32 [N, C, H, W]; labels: int64 [N], None where the float model is to say what is right."""

    images: Tensor
    labels: Tensor | None = None


def draw_sample(config: ViTConfig, recipe: Recipe, cfg: Mapping[str, Any]) -> Sample:
    """Images for a model by its recipe; cfg: timm's, for the preprocessing of the user's.

    Raises InputError for the user's images where they cannot be read, or their classes are not the model's, and
    UsageError for labels where it has none.
    """
    settings = recipe.synthesis
    if settings is None or not settings.images_read:
        generator = torch.Generator().manual_seed(recipe.seed)
        return Sample(draw_pictures(config, _LEAVES, generator))
    if settings.labelled and not config.num_classes:
        raise UsageError(
            "the model has no classes for labels to be of: leave out synthesis.labelled=true"
        )
    images, labels = UserImages(settings, cfg, config.num_classes).read(range(settings.images_read))
    return Sample(images, labels if settings.labelled else None)


def plan_sample(recipe: Recipe) -> dict[str, Any]:
    """What `draw_sample` would give, for a dry run: the number of images, and what is trained on."""
    settings = recipe.synthesis
    if settings is None or not settings.images_read:
        return {"images": _LEAVES, "objective": "float model"}
    objective = "labels" if settings.labelled else "float model"
    return {"images": settings.images_read, "objective": objective}
