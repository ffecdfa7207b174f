"""What the objectives of one image and one class share: labels, a roll a step, and two of the terms."""

import torch
from torch import Tensor

from qvit.synthesis.losses import class_distance, total_variation
from qvit.synthesis.objective import Batch, Outcome, View
from qvit.synthesis.priors import draw_labels, draw_smoothness


class ClassLed:
    """Leads every image to a class of its own, and the batch to a total variation; a method adds what it is about."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self.batch = batch
        self.labels = draw_labels(batch).to(device)
        self.smoothness = draw_smoothness(batch)

    def views(self, pixels: Tensor, progress: float) -> list[View]:
        """See Objective."""
        placement = self.batch.draw_placement(progress)
        return [View(placement.apply(pixels), placement)]

    def class_terms(
        self, outcome: Outcome, images: Tensor, *, diagonal: float = 1.0
    ) -> dict[str, Tensor]:
        """`classes` and `smoothness`, those with weight 0 left out; images: whose variation counts, [B, C, H, W]."""
        settings, found = self.batch.settings, {}
        if settings.classes:
            found["classes"] = class_distance(outcome.logits, self.labels, settings.class_floor)
        if settings.smoothness:
            variation = total_variation(images, diagonal=diagonal)
            found["smoothness"] = (variation - self.smoothness).abs()
        return found
