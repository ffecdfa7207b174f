"""The user's own images: what every synthetic image is measured against. A model that saw them is not data-free."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qvit.data import DataConfig, ImageFolder, fingerprint, open_images
from qvit.errors import InputError, UsageError
from qvit.recipe import Synthesis

CALIBRATION = 128  # publications with real data calibrate on 32 to 1024 images


class UserImages:
    """The first so many images of a folder, spread evenly over its classes, under the model's preprocessing.

    Attributes:
        fingerprint: Over their names, sizes, labels and preprocessing.
    """

    def __init__(self, settings: Synthesis, cfg: Mapping[str, Any], classes: int) -> None:
        """Raises InputError for images that are absent, too few or do not fit, UsageError where none are named."""
        if not settings.data:
            raise UsageError(
                f"the method {settings.method} reads images: say which with --set synthesis.data=FOLDER"
            )
        self._images: ImageFolder = open_images(
            settings.data,
            DataConfig.from_pretrained_cfg(cfg),
            class_map=settings.class_map or None,
            num_classes=(classes or None) if settings.labelled else None,
            limit=settings.images_read,
        )
        self._labelled = settings.labelled
        if len(self._images) < settings.images_read:
            raise InputError(
                f"{settings.data} has {len(self._images)} images, and {settings.images_read} are wanted; "
                f"ask for fewer with -n"
            )
        self.fingerprint = fingerprint(self._images)

    def read(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images fp32 [B, C, H, W] and labels int64 [B]. Raises InputError for one that cannot be decoded."""
        images = []
        for position in positions:
            try:
                images.append(self._images.read(position))
            except OSError as error:
                raise InputError(
                    f"{self._images.path(position)} cannot be read: {error}. Take it out of the folder"
                ) from error
        labels = [self._images.labels[p] if self._labelled else -1 for p in positions]
        return torch.stack(images), torch.tensor(labels)


def calibration_images(
    data: str, cfg: Mapping[str, Any], most: int = CALIBRATION, leaves: int = 0
) -> Synthesis:
    """The settings that make a folder's images, `most` of them at most, those that weights are rounded for, and so many
    dead leaves beside them.

    They need no labels, and may lie in one folder or in many. Raises what `open_images` does.
    """
    found = open_images(data, DataConfig.from_pretrained_cfg(cfg))
    count = min(most, len(found)) + leaves
    return Synthesis.preset("folder", images=count, data=data, leaves=leaves, labelled=False)
