"""Relaxation: weights between the two codes next to them, so that a gradient can choose one (AdaRound)."""

import torch
from torch import Tensor, nn

from qvit.quant.slices import Limits

# The sigmoid is stretched from here to there and cut to 0..1, so that it reaches both ends at finite logits.
_BOTTOM, _TOP = -0.1, 1.1


class Relaxation(nn.Module):
    """Soft codes of a weight on a fixed grid: floor(w / step) + h(V), and one free factor a scale.

    h is the rectified sigmoid of Nagel et al. 2020 (AdaRound, section 3.2, equation 23), which starts where the code is
    w / step itself, so that the first step sees the float weight:

        h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)

    A weight beyond its grid keeps the last code. The scale is multiplied by exp(growth); the codes do not feel that.

    Attributes:
        logits: V, [N, K], to be learned.
        growth: [N], zeros, to be learned or not.
        below: The lower of both codes, whole numbers [N, K].
    """

    below: Tensor

    def __init__(self, weight: Tensor, steps: Tensor, limits: Limits) -> None:
        """weight: [N, K]; steps: of its groups of columns, [N, G], none zero, of either sign; limits: of the codes,
        numbers or what broadcasts to the weight by groups, [N, G, K / G].
        """
        super().__init__()
        low, high = limits
        exact = weight.unflatten(-1, (steps.shape[-1], -1)) / steps.unsqueeze(-1)
        below = exact.floor().clamp(low, high - 1)  # pyright: ignore[reportCallIssue, reportArgumentType]
        share = (exact - below).clamp(0, 1).flatten(-2)
        self.register_buffer("below", below.detach().flatten(-2))
        start = torch.logit((share - _BOTTOM) / (_TOP - _BOTTOM))
        self.logits = nn.Parameter(start.detach())
        self.growth = nn.Parameter(weight.new_zeros(len(weight)))

    def share(self) -> Tensor:
        """h(V): how much of the way to the upper code, [N, K] from 0 to 1."""
        return (torch.sigmoid(self.logits) * (_TOP - _BOTTOM) + _BOTTOM).clamp(0, 1)

    def forward(self) -> Tensor:
        """The soft codes, [N, K], differentiable."""
        return self.below + self.share()

    def pressure(self, beta: float) -> Tensor:
        """1 - |2 h - 1|^beta of every weight, [N, K]: 0 where it is decided, 1 half way (equation 24)."""
        return 1 - (2 * self.share() - 1).abs().pow(beta)

    @torch.no_grad()
    def decided(self) -> Tensor:
        """The codes that the weights end with: whole numbers [N, K], the nearer of both."""
        return self.below + (self.share() >= 0.5)
