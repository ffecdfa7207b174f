"""What a method is to the loop: how the network sees the images, and the terms that are made small.

A method that needs the student beside the teacher is given it when its objective is prepared, and runs it on the views
in `terms`: MaskAQ's is in maskaq.py, the game of PSAQ-ViT V2 in qvit/distillation, where the student also moves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Generator, Tensor

from qvit.models.networks import NetworkConfig
from qvit.recipe import Synthesis
from qvit.synthesis.augmentation import Placement, draw_placement
from qvit.synthesis.recording import BlockRecord
from qvit.synthesis.statistics import NormRecord


@dataclass(frozen=True, slots=True)
class View:
    """Images as the network sees them.

    Attributes:
        images: fp32 [V, C, H, W], differentiable with respect to the pixels.
        placement: Where the pixels went; None where patches of the view are no patches of the images, and none of
            them is dropped.
    """

    images: Tensor
    placement: Placement | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the network made of a view.

    Attributes:
        logits: fp32 [V, classes].
        records: Of every attention block, in order; a network without attention has none.
        kept: int64 [V, K], which of the view's patches it saw; None for all.
        statistics: Of every BatchNorm, in order; a network without them has none.
        features: Last of them is what the classifier pools: tokens [V, T, D] of a ViT; of a ResNet the outputs of all
            stages, [V, C, h, w].
    """

    view: View
    logits: Tensor
    records: Sequence[BlockRecord]
    kept: Tensor | None
    statistics: Sequence[NormRecord] = ()
    features: Sequence[Tensor] = ()


class Objective(Protocol):
    """One batch's aim, with everything random about it drawn from the batch's own generator."""

    @property
    def labels(self) -> Tensor:
        """What is stored with the images: int64 [B], or probabilities fp32 [B, classes]."""
        ...

    def views(self, pixels: Tensor, progress: float) -> list[View]:
        """What the network is shown at a step; progress from 0 to 1, `pixels` [B, C, H, W]."""
        ...

    def terms(self, pixels: Tensor, outcomes: Sequence[Outcome]) -> dict[str, Tensor]:
        """Scalars named as their weights in Synthesis (attention, statistics, classes, ...); those with weight 0 left
        out.
        """
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """What a method needs to know of the batch it prepares: shapes on the one hand, settings on the other."""

    count: int
    config: NetworkConfig
    settings: Synthesis
    generator: Generator

    def draw_placement(self, progress: float) -> Placement:
        """A roll and a mirror image as the settings have them; the roll doubles in the second half."""
        s = self.settings
        shift = s.shift * (2 if progress >= 0.5 else 1)
        size = self.config.image_size
        return draw_placement(size, shift, s.shift_diagonal, s.flip, self.generator)
