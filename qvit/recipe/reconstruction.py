"""How weights learn which way to be rounded: one frozen value."""

from dataclasses import dataclass

from qvit.errors import UsageError
from qvit.recipe.fields import Ranges, check_ranges


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """Settings of weights.rounding = learned; what they steer is in qvit/distillation/reconstruction.py.

    The publications take 10,000 to 20,000 steps at rates of 1e-2 to 1e-3, with `beta` from 20. In 120 steps at 0.1 that
    and a `decide` of 1 leave 42 % of the roundings of a small ViT undecided until they are cut off, these defaults 4 %;
    its error on unseen images is 0.59 and 0.53 of that of nearest rounding. Scales that move took the KL of the W4A4
    demo ViT on 200 development pictures from 0.040 to 0.033, after 100 steps on 64 real ones (nearest: 0.044, gptq:
    0.035).

    Attributes:
        steps: Of each block.
        batch: Images of a step, with all of their tokens.
        lr: Adam's rate for the roundings.
        scale_lr: Adam's rate for the logarithms of the weights' scales; 0: they stay.
        decide: Weight of the pressure on every rounding to be one of its two codes; the error of the block, in units of
            what rounding to nearest leaves, has weight 1.
        free: Share of the steps before there is any pressure.
        beta: Exponent with which the pressure begins, felt by roundings that are nearly decided.
        beta_final: Exponent at the end, felt by all.
    """

    steps: int = 400
    batch: int = 16
    lr: float = 0.03
    scale_lr: float = 1e-3
    decide: float = 10.0
    free: float = 0.2
    beta: float = 8.0
    beta_final: float = 2.0

    def __post_init__(self) -> None:
        check_ranges("weights.reconstruction.", self, _RANGES)
        if self.beta_final > self.beta:
            raise UsageError(
                "weights.reconstruction.beta_final is above weights.reconstruction.beta; exchange them"
            )


_RANGES: Ranges = (
    ("steps", 1, None),
    ("batch", 1, None),
    ("lr", 1e-12, 1e3),
    ("scale_lr", 0, 1),
    ("decide", 0, 1e9),
    ("free", 0, 1),
    ("beta", 1, 100),
    ("beta_final", 1, 100),
)
