"""MimiQ (Choi et al., AAAI 2025): images on which the heads of a block attend alike, as they do on real ones."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qvit.synthesis.augmentation import jitter_colours, shift_colours
from qvit.synthesis.class_led import ClassLed
from qvit.synthesis.losses import inter_head_distance_of
from qvit.synthesis.objective import Outcome, View


class HeadSimilarity(ClassLed):
    """L = attention IHC + classes CE + smoothness TV, over all blocks, patch queries and pairs of heads.

    The network sees rolled images, a colour shift that fades to nothing, and random contrast and brightness.
    """

    def views(self, pixels: Tensor, progress: float) -> list[View]:
        """See Objective."""
        settings, generator = self.batch.settings, self.batch.generator
        placement = self.batch.draw_placement(progress)
        seen = placement.apply(pixels)
        if settings.colour_shift:
            seen = shift_colours(seen, settings.colour_shift * (1 - progress), generator)
        if settings.colour_jitter:
            seen = jitter_colours(seen, settings.colour_jitter, generator)
        return [View(seen, placement)]

    def terms(self, pixels: Tensor, outcomes: Sequence[Outcome]) -> dict[str, Tensor]:
        """See Objective. Total variation is that of the pixels before they are varied."""
        settings, (outcome,) = self.batch.settings, outcomes
        found = {}
        if settings.attention:
            distances = [inter_head_distance_of(record) for record in outcome.records]
            found["attention"] = torch.stack(distances).mean()
        return found | self.class_terms(outcome, pixels, diagonal=1 / math.sqrt(2))
