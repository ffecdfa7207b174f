"""PSAQ-ViT (Li et al., ECCV 2022): patches as unlike each other as those of real images are.

Images are optimised so that the similarities of their patches are spread widely (high differential entropy), where
noise makes them all alike; with a class and a total variation drawn for the batch. Two rounds of 500 steps, the
second with rolls twice as far. The places of the density couple the images of a batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from qvit.synthesis.class_led import ClassLed
from qvit.synthesis.entropy import patch_similarity_entropy
from qvit.synthesis.objective import Outcome


class PatchSimilarity(ClassLed):
    """L = - sum over blocks H + classes CE + smoothness |TV - v|, v drawn once a batch (section 3.3).

    Entropy is that of the attention output at every patch, averaged over heads; the published constants are in the
    preset `psaq`.
    """

    def terms(self, pixels: Tensor, outcomes: Sequence[Outcome]) -> dict[str, Tensor]:
        """See Objective. Total variation is taken after the roll, as published."""
        settings, (outcome,) = self.batch.settings, outcomes
        found = {}
        if settings.attention:
            entropies = [
                patch_similarity_entropy(
                    record.features(), bandwidth=settings.bandwidth, points=settings.points
                )
                for record in outcome.records
            ]
            found["attention"] = -torch.stack(entropies).sum()
        return found | self.class_terms(outcome, outcome.view.images)
