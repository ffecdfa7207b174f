"""Weights of the papers, simulated: symmetric, a scale per output channel, for Linears and convolutions alike."""

import torch
from torch import Tensor, nn

from qvit.quant.ranges import group_steps


class WeightQuantizer(nn.Module):
    """Quantizes and dequantizes a weight [N, ...], axis 0 the output channel.

    "minmax" is MimiQ's and PSAQ-ViT's (Choi et al., AAAI 2025; Li et al., ECCV 2022): the range follows the weight in
    every pass, step = 2 max|w| / (2^b - 1), codes from -2^(b-1) to 2^(b-1) - 1, so that the largest weight lies half a
    step beyond the last code. That is a tie, and the last bit of a float would decide it: gradient inundation would
    count a changed integer in every other row of weights that did not move. So the step is 1/1920 smaller at 4 bits,
    as in qvit's own ranges (ranges.steps_that_reach). The gradient passes straight through to every weight.
    "mse" has the steps with the least squared error, found once by `fit`, and weights beyond their range get no
    gradient. A range that follows can be made to stay, by `hold`.

    Attributes:
        follows: Whether the range is that of the weight at hand.
        scale: Steps fp32 [N] of a range that stays; empty for one that follows.
    """

    scale: Tensor

    def __init__(self, bits: int, range: str = "minmax", channels: int = 0) -> None:
        """`channels`: N, for the steps of "mse"."""
        super().__init__()
        if range not in ("minmax", "mse"):
            raise ValueError(f"range {range!r}: expected minmax or mse")
        self.bits, self.follows = bits, range == "minmax"
        self.low, self.high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        self.register_buffer("scale", torch.ones(channels if range == "mse" else 0))

    @torch.no_grad()
    def fit(self, weight: Tensor) -> None:
        """Find the steps of "mse" for a weight; "minmax" needs none."""
        if not self.follows:
            self.scale.copy_(group_steps(weight.flatten(1), self.bits).squeeze(-1))

    @torch.no_grad()
    def hold(self, weight: Tensor) -> None:
        """Keep the steps that a weight has now: put on its grid, its largest value would change the grid."""
        if self.follows:
            self.scale = self._step(weight, 1).flatten()
            self.follows = False

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its grid, same shape, with a straight-through gradient."""
        step = self.steps(weight)
        scaled = weight / step
        kept = scaled if self.follows else scaled.clamp(self.low, self.high)
        codes = scaled.detach().round().clamp(self.low, self.high)
        return (kept + (codes - kept.detach())) * step

    def codes(self, candidates: Tensor) -> Tensor:
        """What candidates [A, N, ...] would be stored as: whole numbers of that shape."""
        return (candidates / self._step(candidates, 2)).round_().clamp_(self.low, self.high)

    def steps(self, weight: Tensor) -> Tensor:
        """The step of every output channel, [N, 1, ...], without a gradient."""
        return self._step(weight.detach(), 1)

    def _step(self, weight: Tensor, leading: int) -> Tensor:
        """Broadcasts against a weight whose first `leading` axes end with the output channel."""
        if not self.follows:
            return self.scale.view(-1, *[1] * (weight.dim() - leading))
        largest = weight.flatten(leading).abs().amax(-1)
        step = (largest / (2 ** (self.bits - 1) - 127 / 256)).clamp_min(1e-12)
        return step.view(*step.shape, *[1] * (weight.dim() - leading))
