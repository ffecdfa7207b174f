"""BatchNorm statistics matching (DeepInversion, Yin et al., CVPR 2020): images that a CNN cannot tell from its data.

A CNN keeps mean and variance of every channel over its training data. Images are optimised until a batch of them has
the same, with a class each. A ViT keeps no such thing, which is why its methods look at attention instead.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from qvit.synthesis.losses import class_distance, total_variation
from qvit.synthesis.objective import Batch, Outcome, View
from qvit.synthesis.priors import draw_labels, draw_smoothness
from qvit.synthesis.statistics import statistics_distance


class StatisticsMatching:
    """L = statistics BNS + classes CE + smoothness TV.

    Published constants are in the preset `bns`. Of the paper's prior the Euclidean norm of the image is left out:
    pixels are kept within what a pixel can be, so it has nothing to hold back. Competition with a student (adaptive
    DeepInversion) is what the game of PSAQ-ViT V2 does.
    """

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self.batch = batch
        self.labels = draw_labels(batch).to(device)
        self.smoothness = draw_smoothness(batch)

    def views(self, pixels: Tensor, progress: float) -> list[View]:
        """See Objective."""
        placement = self.batch.draw_placement(progress)
        return [View(placement.apply(pixels), placement)]

    def terms(self, pixels: Tensor, outcomes: Sequence[Outcome]) -> dict[str, Tensor]:
        """See Objective."""
        settings, (outcome,) = self.batch.settings, outcomes
        found = {}
        if settings.statistics:
            found["statistics"] = statistics_distance(outcome.statistics)
        if settings.classes:
            found["classes"] = class_distance(outcome.logits, self.labels, settings.class_floor)
        if settings.smoothness:
            found["smoothness"] = (total_variation(outcome.view.images) - self.smoothness).abs()
        return found
