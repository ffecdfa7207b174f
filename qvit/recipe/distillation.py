"""How a low-bit student is trained after its float teacher: one frozen value, with a preset for every publication.

Schedules are in shares of the run, so that a smaller budget keeps their shape.
"""

from dataclasses import dataclass
from typing import Any, Self

from qvit.errors import UsageError
from qvit.recipe.fields import Ranges, check_choice, check_ranges, fill_preset

OPTIMISERS = ("sgd", "adam")
SCHEDULES = ("constant", "steps", "cosine")
_PRECISIONS = ("float32", "bfloat16")
# The weights of the losses; what they weigh is in qvit/distillation/objective.py.
TERMS = ("kl", "logits", "classes", "heads", "features")


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """Everything that decides the trained weights, apart from teacher, student, images and seed.

    Attributes:
        method: The preset that it began as.
        epochs: Times that every training image is seen.
        renew: Epochs after which images are made anew, for the student as it is then (MaskAQ); 0: never.
        batch: Images of a step, over all processes.
        precision: Of the matrix products of the teacher, and of students whose scheme is a publication's; those of
            qvit's own grids and losses are float32.
        optimiser: "sgd" with Nesterov's momentum, or "adam".
        lr: Rate at the start.
        lr_final: Rate at the end, of the cosine.
        schedule: "constant", "steps" (times `drop` after every `drop_every` of the run, `drops` times) or "cosine".
        drop, drop_every, drops: Of "steps"; the share p of gradient inundation falls with them, whatever the schedule.
        momentum: SGD's, or Adam's first moment.
        weight_decay: Of all parameters.
        kl: Weight of the KL divergence from the teacher's probabilities.
        temperature: By which logits are divided in it; the divergence is multiplied by its square.
        kl_mean: Average it over classes, too, as torch's default reduction does: a factor of 1 / classes.
        logits: Weight of the mean absolute difference of logits (PSAQ-ViT V2).
        classes: Weight of the cross-entropy with the labels that the images were made for.
        heads: Weight of the structural distance of each head's attention output (MimiQ).
        heads_focus: Factor of the patches where the teacher's output is largest in it (MaskAQ); 1: all alike.
        heads_share: Share of the patches that have the factor.
        features: Weight of the mean square difference of block outputs.
        inundation: Share of the integers of each weight that a step changes at least (AIT); 0: an ordinary step.
        inundation_drop: Factor of that share at every drop of the schedule.
        inundation_cap: Largest factor of a step.
        inundation_bisections: Evaluations between the last two doublings.
        track: Share of the run in which static ranges of "ema" still follow the activations.
        augment: Train on crops, mirror images, colour jitter, grey and blurred images (MimiQ).
        holdout: Share of the images that is never trained on, for the agreement with the teacher.
        patience: Epochs without better agreement before the run ends early; 0: it never does.
        skips: Steps in a row that may be skipped for a loss that is not finite.
    """

    method: str = "kl"
    epochs: int = 20
    renew: int = 0
    batch: int = 16
    precision: str = "float32"
    optimiser: str = "sgd"
    lr: float = 1e-3
    lr_final: float = 0.0
    schedule: str = "constant"
    drop: float = 0.1
    drop_every: float = 0.25
    drops: int = 0
    momentum: float = 0.9
    weight_decay: float = 0.0
    kl: float = 0.0
    temperature: float = 1.0
    kl_mean: bool = False
    logits: float = 0.0
    classes: float = 0.0
    heads: float = 0.0
    heads_focus: float = 1.0
    heads_share: float = 0.1
    features: float = 0.0
    inundation: float = 0.0
    inundation_drop: float = 0.1
    inundation_cap: float = 65536.0
    inundation_bisections: int = 5
    track: float = 0.0
    augment: bool = False
    holdout: float = 0.1
    patience: int = 0
    skips: int = 10

    def __post_init__(self) -> None:
        check_choice("distillation.optimiser", self.optimiser, OPTIMISERS)
        check_choice("distillation.schedule", self.schedule, SCHEDULES)
        check_choice("distillation.precision", self.precision, _PRECISIONS)
        check_ranges("distillation.", self, _RANGES)
        if not any(getattr(self, name) for name in TERMS):
            raise UsageError(
                f"distillation has nothing to learn from: raise one of {', '.join(TERMS)} above 0"
            )
        if self.lr_final > self.lr:
            raise UsageError("distillation.lr_final is above distillation.lr; exchange them")
        if self.patience and not self.holdout:
            raise UsageError(
                f"distillation.patience = {self.patience} needs images to measure on: raise distillation.holdout"
            )

    @classmethod
    def preset(cls, method: str, **changes: Any) -> Self:
        """A publication's settings, some of them replaced.

        Raises:
            UsageError: The method or a field is unknown, or a value impossible.
        """
        return fill_preset(cls, _PRESETS, method, changes, "distillation")


_RANGES: Ranges = (
    ("epochs", 1, None),
    ("renew", 0, None),
    ("batch", 1, None),
    ("lr", 1e-12, 1e3),
    ("lr_final", 0, 1e3),
    ("drop", 0, 1),
    ("drop_every", 1e-3, 1),
    ("drops", 0, 100),
    ("momentum", 0, 0.9999),
    ("weight_decay", 0, 1),
    *((name, 0, 1e9) for name in TERMS),
    ("temperature", 1e-3, 1e3),
    ("heads_focus", 0, 1e3),
    ("heads_share", 0, 1),
    ("inundation", 0, 0.5),
    ("inundation_drop", 0, 1),
    ("inundation_cap", 1, 2**20),
    ("inundation_bisections", 0, 30),
    ("track", 0, 1),
    ("holdout", 0, 0.5),
    ("patience", 0, None),
    ("skips", 0, None),
)

_SGD_STEPS = {"schedule": "steps", "drop": 0.1, "drop_every": 0.25}
_PRESETS: dict[str, dict[str, Any]] = {
    # Divergence alone: what every refinement has to be better than.
    "kl": {"kl": 1.0, "temperature": 1.0, "schedule": "cosine"},
    # The same with the labels that the images were made for.
    "kl-classes": {"kl": 1.0, "temperature": 1.0, "classes": 1.0, "schedule": "cosine"},
    # Choi et al., AAAI 2025, section on distillation, and 200 epochs of 10,000 images in batches of 16. The rate is a
    # choice a model and not published; MaskAQ's example for the same code drops 1e-3 at 50 and 100 of 200 epochs.
    "mimiq": {
        "epochs": 200, "batch": 16, "lr": 1e-3, **_SGD_STEPS, "drops": 2, "kl": 1.0, "temperature": 5.0,
        "heads": 10.0, "augment": True,
    },
    # MaskAQ (ICML 2026): MimiQ with twice the weight where the teacher's output is large, a cosine to 1 %, and
    # images made anew every 30 epochs.
    "maskaq": {
        "epochs": 200, "renew": 30, "batch": 16, "lr": 1e-3, "schedule": "cosine", "lr_final": 1e-5, "kl": 1.0,
        "temperature": 5.0, "heads": 10.0, "heads_focus": 2.0, "heads_share": 0.1, "augment": True,
    },
    # Choi et al., CVPR 2022: divergence alone, averaged over classes, too, as their code does; p of ImageNet. The
    # ranges of activations are unfrozen in the first 4 of 400 epochs.
    "ait": {
        "epochs": 400, "batch": 16, "lr": 1e-4, **_SGD_STEPS, "drops": 3, "kl": 1.0, "temperature": 20.0,
        "kl_mean": True, "inundation": 1e-4, "track": 0.01,
    },
    # Li et al., TNNLS 2023, our reconstruction: the discrepancy of the game, by mean absolute difference.
    "psaq-v2": {"epochs": 20, "batch": 32, "lr": 1e-3, "logits": 1.0},
    # ACQ (Pattern Recognition 2024), our reconstruction: divergence and labels, as in the generators before it.
    "acq": {
        "epochs": 400, "batch": 16, "lr": 1e-4, **_SGD_STEPS, "drops": 3, "kl": 1.0, "temperature": 20.0,
        "classes": 0.1, "track": 0.01,
    },
}  # fmt: skip

DISTILLATIONS = tuple(_PRESETS)
