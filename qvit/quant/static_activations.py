"""Activations of the papers, simulated: one scale and zero point a tensor, whatever its shape.

A quantizer is made without a range and gets one while it `observes`: in the first batch that passes through it. It
refuses to run before. All are affine with codes from 0 to 2^b - 1; a signed grid is one whose zero point is 2^(b-1)
higher.
"""

import torch
from torch import Tensor, nn

from qvit.quant.observers import fake_quantize, observe, scale_and_zero_point, slowed
from qvit.quant.schemes import Granularity, Mode, Scheme
from qvit.quant.tracking import Company
from qvit.recipe.static import Static

_DECAY = 0.9
_LEAST_STEP = 1e-5


class ActivationQuantizer(nn.Module):
    """What the kinds have in common: when they look, and what they answer while they do.

    Attributes:
        observing: Take the range of what passes.
        tracking: Let a range that is set follow what passes; only "ema" does.
        hands_on_float: While observing, answer the input as it is: all ranges are those of the float model, as
            post-training quantization has them. LSQ answers its own grid: as published, each is set behind quantized
            ones.
        company: With whom the batches of a training are shared, so that all compute what one would on the whole of
            them; None: nobody. Observing goes by what this process sees: all calibrate on the same images.
    """

    ready: Tensor
    hands_on_float = True
    company: Company | None = None

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.scheme = Scheme(
            bits=bits, granularity=Granularity.TENSOR, mode=Mode.STATIC, symmetric=False
        )
        self.observing = self.tracking = False
        self.register_buffer("ready", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        """x on its grid in fp32, same shape, with straight-through gradients."""
        x = x.float()
        if self.observing:
            with torch.no_grad():
                self.observe(x.detach())
                self.ready.fill_(True)
            if self.hands_on_float:
                return x
        elif not self.ready:
            raise RuntimeError(
                "this static quantizer has no range yet: calibrate the student with a batch of images first"
            )
        return self.quantize(x)

    def observe(self, x: Tensor) -> None:
        """Take a range from x, without gradients."""
        raise NotImplementedError

    def quantize(self, x: Tensor) -> Tensor:
        """x on the grid that was found."""
        raise NotImplementedError


class LearnedStep(ActivationQuantizer):
    """Step and zero point are parameters: LSQ (Esser et al. 2020) with LSQ+'s zero point (Bhalgat et al. 2020).

        x_hat = (round(clamp(x / a + z, low, high)) - z) a          gradients of a and z times g / sqrt(values * high)

    where the values are those of the whole batch, over all processes that share it, and g (`step_gradient`) is 1.

    MimiQ (Choi et al., AAAI 2025) starts from the first batch: a = 2 mean|x| / sqrt(high), z = 0.1 (min x - a high), on
    a signed grid where there are negative values. Its code takes a minimum below 1e-5 for negative, which puts softmax
    outputs on a signed grid, and lets a become zero; with `traps` this one does, too. Zero points are rounded in use,
    with a straight-through gradient.
    """

    signed: Tensor
    hands_on_float = False

    def __init__(
        self,
        bits: int,
        start: str = "formula",
        *,
        traps: bool = False,
        step_gradient: float = 1.0,
    ) -> None:
        super().__init__(bits)
        self.start, self.traps, self.step_gradient = start, traps, step_gradient
        self.scale = nn.Parameter(torch.ones(()))
        self.zero_point = nn.Parameter(torch.zeros(()))
        self.register_buffer("signed", torch.tensor(False))

    def observe(self, x: Tensor) -> None:
        """Only the first batch counts, as published."""
        if self.ready:
            return
        least = x.amin()
        if self.start == "mse":
            low, high = observe(x, tuple(range(x.dim())), self.scheme, "mse")
            scale, zero_point = scale_and_zero_point(low, high, self.scheme)
            self.scale.copy_(scale.view(()))
            self.zero_point.copy_(zero_point.view(()))
            return
        self.signed.copy_(least < (_LEAST_STEP if self.traps else 0.0))
        top = self._top()
        scale = (2 * x.abs().mean() / top.sqrt()).clamp_min(_LEAST_STEP)
        self.scale.copy_(scale)
        self.zero_point.copy_(0.1 * (least - scale * top))

    def quantize(self, x: Tensor) -> Tensor:
        """See ActivationQuantizer."""
        # Gradients are averaged over the processes: with its own values they would be sqrt(count) times as long.
        count = 1 if self.company is None else self.company.count
        factor = self.step_gradient * (x.numel() * count * self._top()).rsqrt()
        scale = slowed(self.scale, factor)
        if not self.traps:
            # The value is held above zero, the gradient is not held: a step that was pushed there finds back.
            scale = scale + (scale.detach().clamp_min(_LEAST_STEP) - scale.detach())
        zero_point = slowed(self.zero_point, factor)
        zero_point = zero_point + self.signed * 2 ** (self.bits - 1)
        return fake_quantize(x, scale, zero_point, self.scheme)

    def _top(self) -> Tensor:
        """Largest code of the grid: 7 of a signed and 15 of an unsigned one, at 4 bits."""
        whole = torch.tensor(2.0**self.bits - 1, device=self.signed.device)
        return torch.where(self.signed, (whole - 1) / 2, whole)


class FollowedRange(ActivationQuantizer):
    """Minimum and maximum, followed with a decay of 0.9 and corrected for where they started, until frozen (the
    optional "minmax" of MimiQ's code, and the ranges of AIT, Choi et al., CVPR 2022).
    """

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        for name in ("low", "high", "seen"):
            self.register_buffer(name, torch.zeros(()))

    def observe(self, x: Tensor) -> None:
        """A step of both averages."""
        self._follow(*torch.aminmax(x))

    def _follow(self, low: Tensor, high: Tensor) -> None:
        self.low.lerp_(low, 1 - _DECAY)
        self.high.lerp_(high, 1 - _DECAY)
        self.seen += 1

    def quantize(self, x: Tensor) -> Tensor:
        """See ActivationQuantizer."""
        if self.tracking and self.training_pass(x):
            low, high = torch.aminmax(x.detach())
            if self.company is not None:
                # Of the whole batch: ranges that each followed alone would drift apart.
                ends = torch.stack((-low, high))
                self.company.highest(ends)
                low, high = -ends[0], ends[1]
            self._follow(low, high)
        correction = 1 - _DECAY**self.seen
        scale, zero_point = scale_and_zero_point(
            self.low / correction, self.high / correction, self.scheme
        )
        return fake_quantize(x, scale, zero_point, self.scheme)

    @staticmethod
    def training_pass(x: Tensor) -> bool:
        """Whether somebody will differentiate: measuring a student must not move its ranges."""
        return x.requires_grad and torch.is_grad_enabled()


class FixedRange(ActivationQuantizer):
    """The range of the calibration batches: "minmax" covers all of them, "percentile" leaves 0.05 % out at each end,
    and "mse" has the least squared error; of several batches these two take the mean.
    """

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self, bits: int, observer: str) -> None:
        super().__init__(bits)
        self.observer = observer
        for name in ("low", "high", "seen"):
            self.register_buffer(name, torch.zeros(()))

    def observe(self, x: Tensor) -> None:
        """Widen the range, or move its mean."""
        low, high = (
            end.view(()) for end in observe(x, tuple(range(x.dim())), self.scheme, self.observer)
        )
        self.seen += 1
        if self.observer == "minmax" and self.seen > 1:
            low, high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        elif self.observer != "minmax":
            low = self.low + (low - self.low) / self.seen
            high = self.high + (high - self.high) / self.seen
        self.low.copy_(low)
        self.high.copy_(high)

    def quantize(self, x: Tensor) -> Tensor:
        """See ActivationQuantizer."""
        scale, zero_point = scale_and_zero_point(self.low, self.high, self.scheme)
        return fake_quantize(x, scale, zero_point, self.scheme)


class PowersOfTwo(ActivationQuantizer):
    """Softmax outputs as powers of two: 2^-k for k = round(-log2 x) up to 2^b - 1, and 0 below (Lin et al., IJCAI
    2022, FQ-ViT, section on log-int-softmax). The range is known, and nothing is observed.
    """

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.ready.fill_(True)

    def observe(self, x: Tensor) -> None:
        """Nothing to find."""

    def quantize(self, x: Tensor) -> Tensor:
        """See ActivationQuantizer."""
        steps = 2**self.bits - 1
        power = -x.detach().clamp_min(2.0 ** -(steps + 2)).log2().round()
        grid = torch.where(power <= steps, torch.exp2(-power.clamp(0, steps)), 0.0)
        return x + (grid - x).detach()


class Untouched(ActivationQuantizer):
    """No quantizer: values are handed on as they are."""

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.ready.fill_(True)

    def observe(self, x: Tensor) -> None:
        """Nothing to find."""

    def quantize(self, x: Tensor) -> Tensor:
        """See ActivationQuantizer."""
        return x


def activation_quantizer(bits: int, static: Static, grid: str = "linear") -> ActivationQuantizer:
    """The quantizer of one tensor; `grid`: where that is not "linear", it stands above the kind of `static`."""
    if grid == "float":
        return Untouched(bits)
    if grid == "log2":
        return PowersOfTwo(bits)
    if static.activations == "lsq":
        return LearnedStep(
            bits, static.start, traps=static.traps, step_gradient=static.step_gradient
        )
    if static.activations == "ema":
        return FollowedRange(bits)
    return FixedRange(bits, static.activations)


def observe_ranges(module: nn.Module, on: bool) -> None:
    """Switch every quantizer inside between taking a range and using it."""
    for part in module.modules():
        if isinstance(part, ActivationQuantizer):
            part.observing = on
