"""The images of a run: which are trained on in which order, and which are kept out to measure by.

Everything random is drawn anew from the seed and the number of the epoch, so that a run that goes on in the middle of
an epoch needs no state of a sampler.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from qvit.errors import InputError, UsageError
from qvit.synthesis import open_images
from qvit.synthesis.seeds import generator_for


@dataclass(frozen=True, slots=True)
class Pool:
    """Images with what they were made for.

    Attributes:
        images: Normalised [N, C, H, W], float16 or float32; float16 is what folders hold, and half the memory.
        labels: int64 [N], or probabilities [N, classes]; None for none.
    """

    images: Tensor
    labels: Tensor | None = None

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """All images of a folder that `synthesize` wrote. Raises InputError where it is none, or not complete."""
        return cls.gather(open_images(folder))

    @classmethod
    def gather(cls, batches: Iterable[tuple[Tensor, Tensor]]) -> Self:
        """All batches of images and labels. Raises InputError where there are none."""
        images, labels = [], []
        for some, theirs in batches:
            images.append(some.half())
            labels.append(theirs)
        if not images:
            raise InputError("there are no images to learn from; make some with qvit synthesize")
        return cls(torch.cat(images), torch.cat(labels))

    def __len__(self) -> int:
        return len(self.images)

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images fp32 [B, C, H, W] and their labels at positions int64 [B]."""
        labels = None if self.labels is None else self.labels[positions]
        return self.images[positions].float(), labels

    def split(self, holdout: float, seed: int) -> tuple[Tensor, Tensor]:
        """Positions to train on and positions to measure by, each in ascending order.

        At least one image is trained on, and with a holdout above 0 at least one is kept out.

        Raises:
            UsageError: There are not enough images for both.
        """
        count = max(1, round(holdout * len(self))) if holdout else 0
        if count >= len(self):
            raise UsageError(
                f"{len(self)} images with a holdout of {holdout:g} leave none to train on; make more of them"
            )
        order = torch.randperm(len(self), generator=generator_for(seed, "holdout", 0))
        return order[count:].sort().values, order[:count].sort().values

    def digest(self) -> str:
        """sha256 (hex) of all pixels and labels."""
        found = hashlib.sha256(_bytes(self.images))
        if self.labels is not None:
            found.update(_bytes(self.labels))
        return found.hexdigest()


@dataclass(frozen=True, slots=True)
class Order:
    """The order of training images: a new permutation each epoch, in whole batches.

    Attributes:
        positions: int64, those to train on.
        batch: Images of a step; all of them, where there are fewer.
        seed: Of the permutations.
    """

    positions: Tensor
    batch: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches; what is left over waits for another permutation."""
        return max(1, len(self.positions) // self.batch)

    def at(self, step: int) -> Tensor:
        """Positions of a step's images, int64 [batch]."""
        epoch, place = divmod(step, self.steps_per_epoch)
        generator = generator_for(self.seed, "order", epoch)
        order = self.positions[torch.randperm(len(self.positions), generator=generator)]
        return order[place * self.batch : (place + 1) * self.batch]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
