"""The images' side of the game: they keep to a prior of what images are, and seek where the student is wrong."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qvit.models.student import Student
from qvit.recipe.game import Game
from qvit.synthesis.objective import Objective, Outcome, View


class Adversary:
    """A prior's terms, and `discrepancy`: less than none, so that making it small makes the student wrong.

        D = mean |T - S| over logits and images           discrepancy = - factor D
        factor = least of D_0 / (running mean of D) and the largest allowed

    PSAQ-ViT V2 (Li et al., TNNLS 2023, arXiv 2209.05687) calls its game adaptive; the rule is our reconstruction. D_0
    is the first value seen: while the student learns and D falls, the factor keeps their product, so that the prior
    neither silences the game nor is silenced by it. Images that the teacher no longer sees anything in are not led on.

    Attributes:
        mean: Running mean of D over the steps; None before the first.
        first: D_0; None before the first.
    """

    def __init__(self, prior: Objective, student: Student, game: Game) -> None:
        self.prior, self.student, self.game = prior, student, game
        self.first: float | None = None
        self.mean: float | None = None

    @property
    def labels(self) -> Tensor:
        """Of the prior; the game asks for no classes."""
        return self.prior.labels

    @property
    def factor(self) -> float:
        """What D is multiplied by at the next step."""
        if self.first is None or not self.mean:
            return 1.0
        return min(self.first / self.mean, self.game.largest)

    def views(self, pixels: Tensor, progress: float) -> list[View]:
        """See Objective."""
        return self.prior.views(pixels, progress)

    def terms(self, pixels: Tensor, outcomes: Sequence[Outcome]) -> dict[str, Tensor]:
        """See Objective."""
        found = self.prior.terms(pixels, outcomes)
        factor = self.factor
        parts = [self._discrepancies(outcome) for outcome in outcomes]
        discrepancy = torch.cat(parts).mean()
        self._follow(discrepancy.item())
        found["discrepancy"] = -factor * discrepancy
        return found

    def _discrepancies(self, outcome: Outcome) -> Tensor:
        """D of each image, [V]; where the teacher sees nothing a constant, without a gradient."""
        seen = self.student(outcome.view.images).logits
        found = (outcome.logits - seen).abs().mean(-1)
        sure = outcome.logits.detach().softmax(-1).amax(-1) >= self.game.confidence
        return torch.where(sure, found, found.detach())

    def _follow(self, value: float) -> None:
        if self.first is None or self.mean is None:
            self.first = self.mean = value
        else:
            self.mean = self.game.decay * self.mean + (1 - self.game.decay) * value
