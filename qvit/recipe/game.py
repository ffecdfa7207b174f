"""How images and student play against each other (PSAQ-ViT V2): one frozen value, the schedule of their turns.

What an image is optimised towards is a Synthesis, what the student learns a Distillation; this is who moves when.
"""

from dataclasses import dataclass

from qvit.errors import UsageError
from qvit.recipe.fields import Ranges, check_ranges
from qvit.recipe.synthesis import Synthesis


@dataclass(frozen=True, slots=True, kw_only=True)
class Game:
    """The turns of a game. PSAQ-ViT V2 publishes the idea and no schedule: every number is our choice.

    Attributes:
        rounds: Turns of both.
        sample_steps: Steps of the images in a round.
        student_steps: Steps of the student in a round.
        refresh: Share of the images that is replaced by new ones, the oldest first.
        refresh_every: Rounds between that; 0: never.
        decay: Of the running mean of the discrepancy.
        largest: By how much the discrepancy's weight may grow as the student learns.
        confidence: Mean largest probability of the teacher below which an image is not led further from the student.
    """

    rounds: int = 100
    sample_steps: int = 10
    student_steps: int = 50
    refresh: float = 0.25
    refresh_every: int = 10
    decay: float = 0.9
    largest: float = 10.0
    confidence: float = 0.02

    def __post_init__(self) -> None:
        check_ranges("game.", self, _RANGES)


def game_images(**changes: object) -> Synthesis:
    """PSAQ-ViT's images without the class term, which seek the student's discrepancy once the game has begun.

    Their iterations are the start, before the student is asked; changes are fields of Synthesis.

    Raises:
        UsageError: A field is unknown, a value impossible, or the discrepancy has no weight.
    """
    defaults: dict[str, object] = {
        "iterations": 500, "rounds": 1, "classes": 0.0, "discrepancy": 1.0, "statistics": 0.01,
    }  # fmt: skip
    found = Synthesis.preset("psaq", **{**defaults, **changes})
    if not found.discrepancy:
        raise UsageError(
            "synthesis.discrepancy = 0: images that do not seek the student play no game"
        )
    return found


_RANGES: Ranges = (
    ("rounds", 1, None),
    ("sample_steps", 1, None),
    ("student_steps", 1, None),
    ("refresh", 0, 1),
    ("refresh_every", 0, None),
    ("decay", 0, 0.9999),
    ("largest", 1, 1e6),
    ("confidence", 0, 1),
)
