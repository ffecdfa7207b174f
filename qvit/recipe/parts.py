"""The parts of a recipe that are qvit's own quantizers: weights, activations, attention, transforms."""

from dataclasses import dataclass, field

from qvit.errors import UsageError
from qvit.recipe.bits import MAX_BITS, check_bits
from qvit.recipe.fields import check_choice
from qvit.recipe.reconstruction import Reconstruction

RANGES = ("mse", "minmax")
ROUNDINGS = ("nearest", "gptq", "learned")


def _check_size(name: str, value: int) -> None:
    if value < 0:
        raise UsageError(f"{name} = {value}: expected 0 (off) or a positive number of channels")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Symmetric weights, one scale per output channel; with a `group`, every so many input channels of it have an
    integer multiple of that scale for a step (0: no groups).

    `rounding`: each weight to its nearest code, or together, for the inputs that the recipe's images cause: a Linear
    after the other, in closed form ("gptq"), or a block after the other, by gradients ("learned").
    `damping`: of gptq; the share of the mean second moment of a Linear's inputs that is added to each.
    `refit`: of gptq; whether scales and multipliers move, near where `range` has them, to leave the least error.
    `reconstruction`: of learned.
    """

    bits: int = 8
    group: int = 0
    range: str = "mse"
    rounding: str = "nearest"
    damping: float = 0.3
    refit: bool = True
    reconstruction: Reconstruction = field(default_factory=Reconstruction)

    def __post_init__(self) -> None:
        check_bits("weights.bits", self.bits)
        _check_size("weights.group", self.group)
        check_choice("weights.range", self.range, RANGES)
        check_choice("weights.rounding", self.rounding, ROUNDINGS)
        if not 0 < self.damping <= 10:
            raise UsageError(
                f"weights.damping = {self.damping}: expected a share above 0, up to 10, such as 0.3"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """Inputs of the Linears: symmetric, dynamic, per token.

    `norm_group`, `proj_group` and `fc2_group`: channels that share a scale in what LayerNorms hand on (to qkv, fc1 and
    the head), and in the inputs of proj and fc2 (0: the whole token). A group that does not divide the width is
    replaced by the largest divisor below it; that of proj is a whole number of heads, and one head at least.
    `prefix_bits`: of the class, distillation and register tokens, in what the Linears of blocks read: 8, or 0 for
    `bits`.
    """

    bits: int = 8
    prefix_bits: int = 0
    norm_group: int = 0
    proj_group: int = 0
    fc2_group: int = 0

    def __post_init__(self) -> None:
        check_bits("activations.bits", self.bits)
        if self.prefix_bits not in (0, MAX_BITS):
            raise UsageError(
                f"activations.prefix_bits = {self.prefix_bits}: expected {MAX_BITS}, or 0 for those of the other tokens"
            )
        _check_size("activations.norm_group", self.norm_group)
        _check_size("activations.proj_group", self.proj_group)
        _check_size("activations.fc2_group", self.fc2_group)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Both attention products. `bits`: Q, K and V, per token and head; `softmax_bits`: the softmax numerators."""

    bits: int = 8
    softmax_bits: int = 8

    def __post_init__(self) -> None:
        check_bits("attention.bits", self.bits)
        check_bits("attention.softmax_bits", self.softmax_bits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transforms:
    """Orthogonal transforms that spread outliers; all are undone in the neighbouring weights.

    `norm`, `fc2`: block size of the signed Hadamard on LayerNorm outputs and on the fc2 input (0: none).
    `qk`, `v`: one rotation a head for Q and K, and for V (undone in proj), folded offline.
    A block that does not divide the width is replaced by a divisor below it, see quant.transforms.fitting_block.
    """

    norm: int = 0
    fc2: int = 0
    qk: bool = False
    v: bool = False

    def __post_init__(self) -> None:
        _check_size("transforms.norm", self.norm)
        _check_size("transforms.fc2", self.fc2)
