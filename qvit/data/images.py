"""A labelled set of images by position, none of them dropped or replaced silently."""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch.utils.data import Dataset

from qvit.data.labels import label_indices, read_class_map
from qvit.data.listings import Listing, list_images
from qvit.data.preprocessing import DataConfig, decode
from qvit.errors import UsageError

if TYPE_CHECKING:
    import torch


class ImageFolder(Dataset[tuple["torch.Tensor | None", int, int]]):
    """Preprocessed images with labels, by position.

    Item `i` is (image float32 [3, height, width], label, i); the image is None where the file
    cannot be decoded.

    Attributes:
        config: The preprocessing.
        labels: The class index of every image.
    """

    def __init__(
        self, listing: Listing, config: DataConfig, labels: Sequence[int], positions: Sequence[int]
    ) -> None:
        self.config = config
        self.labels = [labels[position] for position in positions]
        self._listing = listing
        self._positions = list(positions)
        self._transform = config.transform()

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> tuple["torch.Tensor | None", int, int]:
        try:
            image = self.read(index)
        except OSError:
            image = None
        return image, self.labels[index], index

    def read(self, index: int) -> "torch.Tensor":
        """The preprocessed image, float32 [3, height, width].

        Raises:
            OSError: The file cannot be read or decoded.
        """
        return self._transform(decode(self._listing.read(self._positions[index])))

    def path(self, index: int) -> str:
        """The path of an image below the data's root."""
        return self._listing.paths[self._positions[index]]

    def size(self, index: int) -> int:
        """The bytes of an image's file; 0 where the reader does not tell."""
        return self._listing.sizes[self._positions[index]]

    @property
    def revision(self) -> str:
        """What identifies the contents where sizes do not."""
        return self._listing.revision


def open_images(
    data: str | Path,
    config: DataConfig,
    *,
    class_map: str | Path | None = None,
    num_classes: int | None = None,
    limit: int | None = None,
    split: str = "validation",
) -> ImageFolder:
    """List the images of a folder, a .tar or a Hugging Face data set, with their labels.

    Args:
        data: A folder with one folder per class, a .tar of such folders, "hfds/NAME", or "demo" for
            images that the package renders ("demo:500" for so many).
        config: The model's preprocessing.
        class_map: A file that gives the order of the classes; without it the folder names in
            natural order do.
        num_classes: Of the model, to be checked against; None checks nothing.
        limit: Use so many images, spread evenly over the classes.
        split: Of a Hugging Face data set.

    Raises:
        UsageError: The limit is not positive, the kind of data is not supported, or the model has
            no classes.
        InputError: The data is absent, unreadable or without images, or its classes do not match.
        RequirementError: A package needed for this kind of data is missing.
    """
    # for who guards against reading data: rendered images open no file, and are data all the same
    sys.audit("qvit.open_images", str(data))
    if limit is not None and limit < 1:
        raise UsageError(f"The limit must be at least one image, got {limit}.")
    if num_classes is not None and num_classes < 1:
        raise UsageError(
            "This model ends in features and has no classes, so there is no accuracy to measure."
            " Take weights that were fine-tuned with a classifier."
        )
    name = str(data)
    listing = list_images(name, split, limit)
    mapping = read_class_map(Path(class_map), Path(name)) if class_map is not None else None
    labels = label_indices(
        listing.labels,
        listing.names,
        data=name,
        class_map=mapping,
        map_name=str(class_map),
        num_classes=num_classes,
    )
    total = len(labels)
    count = total if limit is None else min(limit, total)
    return ImageFolder(listing, config, labels, [i * total // count for i in range(count)])


def fingerprint(dataset: ImageFolder) -> str:
    """A sha256 (hex) over the images' paths, sizes and labels and over the preprocessing.

    Equal fingerprints mean equal model inputs, unless a file was changed without changing its size.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps([dataset.config.to_dict(), dataset.revision], sort_keys=True).encode())
    for index, label in enumerate(dataset.labels):
        row = [dataset.path(index), dataset.size(index), label]
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()
