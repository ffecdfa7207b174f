"""Static quantizers: the setting in which publications compare, for simulation only."""

from dataclasses import dataclass

from qvit.recipe.fields import check_choice, check_range

ACTIVATION_RANGES = ("lsq", "ema", "minmax", "percentile", "mse")
SOFTMAX_GRIDS = ("linear", "log2", "float")
GELU_GRIDS = ("linear", "float")
STARTS = ("formula", "mse")


@dataclass(frozen=True, slots=True, kw_only=True)
class Static:
    """One scale and one zero point a tensor of activations; bit-widths are the recipe's.

    Attributes:
        activations: How ranges are found: "lsq" learns step and zero point, "ema" follows minima and maxima with
            decay 0.9, the others look at a calibration batch once.
        start: Where "lsq" begins: MimiQ's "formula", or the range with the least squared error, "mse".
        softmax: Grid of the softmax outputs: "linear", powers of two, "log2", or none at all, "float".
        gelu: Grid of the GELU outputs: "linear", or none at all, "float".
        traps: Reproduce what MimiQ's code does beside its paper: softmax outputs on a signed grid, half of which they
            never use, and steps that may become zero or negative.
        step_gradient: Factor of the gradients of "lsq"'s step and zero point beside LSQ's own. MimiQ's command line
            says 0.01, and its code does not hand that on: what it published was computed with 1.
        ends: Bits of the patch embedding or stem and of the classifier; 0: as all others.
    """

    activations: str = "lsq"
    start: str = "formula"
    softmax: str = "linear"
    gelu: str = "linear"
    traps: bool = False
    step_gradient: float = 1.0
    ends: int = 0

    def __post_init__(self) -> None:
        check_choice("static.activations", self.activations, ACTIVATION_RANGES)
        check_choice("static.start", self.start, STARTS)
        check_choice("static.softmax", self.softmax, SOFTMAX_GRIDS)
        check_choice("static.gelu", self.gelu, GELU_GRIDS)
        check_range("static.step_gradient", self.step_gradient, 0.0, 1.0)
        check_range("static.ends", self.ends, 0, 8)
        if self.ends == 1:
            check_range("static.ends", self.ends, 2, 8)
