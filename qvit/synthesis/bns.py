"""BatchNorm statistics matching (DeepInversion, Yin et al., CVPR 2020): images that a CNN cannot tell from its data.

A CNN keeps mean and variance of every channel over its training data. Images are optimised until a batch of them has
the same, with a class each. A ViT keeps no such thing, which is why its methods look at attention instead.
"""

from collections.abc import Sequence

from torch import Tensor

from qvit.synthesis.class_led import ClassLed
from qvit.synthesis.objective import Outcome
from qvit.synthesis.statistics import statistics_distance


class StatisticsMatching(ClassLed):
    """L = statistics BNS + classes CE + smoothness TV.

    Published constants are in the preset `bns`. Of the paper's prior the Euclidean norm of the image is left out:
    pixels are kept within what a pixel can be, so it has nothing to hold back. Competition with a student (adaptive
    DeepInversion) is what the game of PSAQ-ViT V2 does.
    """

    def terms(self, pixels: Tensor, outcomes: Sequence[Outcome]) -> dict[str, Tensor]:
        """See Objective."""
        settings, (outcome,) = self.batch.settings, outcomes
        found = {}
        if settings.statistics:
            found["statistics"] = statistics_distance(outcome.statistics)
        return found | self.class_terms(outcome, outcome.view.images)
