"""Convolutional students: a ResNet whose convolutions and classifier compute on simulated integers.

The setting of AIT (Choi et al., CVPR 2022) and ACQ: weights a range per output channel, inputs of every layer one
range a tensor, BatchNorm as it is and not folded, because a folded scale would spread the weights of a channel whose
range the papers take from the plain convolution. Residual sums, BatchNorm and ReLU stay in float.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvit.models.resnet import ResNet
from qvit.models.student import IntegerWeight, Seen, Student
from qvit.quant.observers import fake_quantize, observe, scale_and_zero_point
from qvit.quant.quantizers import Quantizer
from qvit.quant.schemes import Granularity, Mode, Scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvolutionalScheme:
    """How a ResNet is quantized.

    Attributes:
        weight_bits, activation_bits: Of every layer but the ends.
        end_bits: Of weights and inputs of the first convolution and the classifier; 0: as all others.
        weight_range: "minmax" covers the largest weight, "mse" shrinks to where the error was least when the student
            was calibrated. Both follow the weights as they are trained.
        observer: Where an activation's range begins: "minmax", "percentile" or "mse" of the calibration batch.
        learned: Train range and zero point of activations (LSQ); otherwise they stay as calibrated.
    """

    weight_bits: int = 4
    activation_bits: int = 4
    end_bits: int = 8
    weight_range: str = "minmax"
    observer: str = "minmax"
    learned: bool = False


class QuantizedLayer(nn.Module):
    """A Conv2d or Linear on simulated integers. The layer keeps its float weight, which is what is trained.

    Until `calibrate` has seen its input it computes with the float input, so that a whole network is calibrated in
    one float pass.
    """

    clip: Tensor

    def __init__(
        self, layer: nn.Conv2d | nn.Linear, bits: tuple[int, int], how: ConvolutionalScheme
    ) -> None:
        """bits: of weight and input."""
        super().__init__()
        weights, inputs = bits
        self.layer = layer
        self.weight_range = how.weight_range
        self.weight_scheme = Scheme(bits=weights, granularity=Granularity.CHANNEL, mode=Mode.STATIC)
        self.input = Quantizer(
            Scheme(
                bits=inputs,
                granularity=Granularity.TENSOR,
                mode=Mode.LEARNED if how.learned else Mode.STATIC,
                symmetric=False,
            ),
            observer=how.observer,
        )
        # The part of the largest weight that the range covers, so that the range follows the weights.
        self.register_buffer("clip", torch.ones(len(layer.weight), 1))
        self.observing = False

    def forward(self, x: Tensor) -> Tensor:
        """x: what the layer takes; returns what it would, on integers."""
        if self.observing:
            self._calibrate(x)
            return self.layer(x)
        weight = self.quantized_weight()
        x = self.input(x)
        if isinstance(self.layer, nn.Conv2d):
            return self.layer._conv_forward(x, weight, self.layer.bias)
        return F.linear(x, weight, self.layer.bias)

    def quantized_weight(self) -> Tensor:
        """The weight on its grid, with straight-through gradients, in its own shape."""
        rows = self.layer.weight.flatten(1)
        scale = self._scale(rows)
        return fake_quantize(rows, scale, torch.zeros_like(scale), self.weight_scheme).view_as(
            self.layer.weight
        )

    @torch.no_grad()
    def codes(self, candidates: Tensor) -> Tensor:
        """Codes of candidate weights [A, N, ...], whole numbers in the dtype of the weights."""
        rows = candidates.flatten(2)
        return (
            (rows / self._scale(rows)).round().clamp(*self.weight_scheme.codes).view_as(candidates)
        )

    def _scale(self, rows: Tensor) -> Tensor:
        """[..., N, K] to [..., N, 1]."""
        largest = rows.detach().abs().amax(-1, keepdim=True) * self.clip
        return scale_and_zero_point(-largest, largest, self.weight_scheme)[0]

    @torch.no_grad()
    def _calibrate(self, x: Tensor) -> None:
        self.input.calibrate(x)
        rows = self.layer.weight.flatten(1)
        largest = rows.abs().amax(1, keepdim=True)
        low, high = observe(rows, (1,), self.weight_scheme, self.weight_range)
        covered = torch.maximum(low.abs(), high.abs())
        self.clip.copy_(torch.where(largest > 0, covered / largest, 1.0))


class ConvolutionalStudent(Student):
    """A ResNet on simulated integers; see the module's page. Starts from a copy of the teacher's weights."""

    def __init__(self, teacher: ResNet, how: ConvolutionalScheme | None = None) -> None:
        super().__init__()
        self.network = copy.deepcopy(teacher).requires_grad_(True)
        how = how or ConvolutionalScheme()
        names = [
            n for n, m in self.network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))
        ]
        for name in names:
            end = bool(how.end_bits) and name in (names[0], names[-1])
            bits = (how.end_bits, how.end_bits) if end else (how.weight_bits, how.activation_bits)
            room, _, leaf = name.rpartition(".")
            layer = self.network.get_submodule(name)
            assert isinstance(layer, (nn.Conv2d, nn.Linear))
            setattr(self.network.get_submodule(room), leaf, QuantizedLayer(layer, bits, how))

    def forward(self, images: Tensor) -> Seen:
        """See Student. `features` are the outputs of the four stages."""
        return see_resnet(self.network, images)

    def integer_weights(self) -> Sequence[IntegerWeight]:
        """See Student."""
        named = dict(self.named_parameters())
        layers = [(n, m) for n, m in self.named_modules() if isinstance(m, QuantizedLayer)]
        return [
            IntegerWeight(f"{name}.layer.weight", named[f"{name}.layer.weight"], layer.codes)
            for name, layer in layers
        ]

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> None:
        """See Student. One pass of the float network: each layer sees what its neighbours make in float."""
        for layer in self._layers():
            layer.observing = True
        try:
            self.network(images)
        finally:
            for layer in self._layers():
                layer.observing = False

    def _layers(self) -> Iterator[QuantizedLayer]:
        return (m for m in self.network.modules() if isinstance(m, QuantizedLayer))


def see_resnet(network: ResNet, images: Tensor) -> Seen:
    """A ResNet's answer as teacher or student: logits, and the outputs of its stages [B, C, h, w]."""
    stages = network.stages(images)
    return Seen(logits=network.forward_head(stages[-1]).float(), features=stages)
