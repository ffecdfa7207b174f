"""Convolutional students: a ResNet whose convolutions and classifier compute on simulated integers.

The setting of AIT (Choi et al., CVPR 2022) and ACQ: weights a range per output channel, inputs of every layer one
range a tensor, the image as it is. BatchNorm is not folded: a folded scale would spread the weights of a channel whose
range the papers take from the plain convolution. Residual sums, BatchNorm and ReLU stay in float.
"""

import copy
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvit.models.resnet import ResNet
from qvit.models.student import IntegerWeight, Seen, Student
from qvit.quant.static_activations import (
    ActivationQuantizer,
    activation_quantizer,
    observe_ranges,
)
from qvit.quant.static_weights import WeightQuantizer
from qvit.recipe import Recipe


class StaticLayer(nn.Module):
    """A Conv2d or Linear with static quantizers. `layer` keeps the float weight, which is what is trained; `input`
    None: it comes as it is.
    """

    input: ActivationQuantizer | None

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        weights: WeightQuantizer,
        input: ActivationQuantizer | None,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.quantizer = weights
        self.quantizer.fit(layer.weight)
        self.input = input

    def forward(self, x: Tensor) -> Tensor:
        """x: what the layer takes; returns what it would, on integers."""
        x = x if self.input is None else self.input(x)
        weight = self.quantizer(self.layer.weight)
        if isinstance(self.layer, nn.Conv2d):
            return self.layer._conv_forward(x, weight, self.layer.bias)
        return F.linear(x, weight, self.layer.bias)


class ConvolutionalStudent(Student):
    """A ResNet on simulated integers; see the module's page. It starts from a copy of the teacher's weights.

    Everything is trained, gain and offset of BatchNorms among it; their statistics never change.
    """

    def __init__(self, teacher: ResNet, recipe: Recipe) -> None:
        """`recipe`: bits and range of weights, bits of activations, and `static`; its other parts are a ViT's.

        Raises:
            ValueError: The recipe has no section `static`: qvit's own quantizers are a ViT's.
        """
        super().__init__()
        if recipe.static is None:
            raise ValueError("the recipe has no static quantizers: give it a section `static`")
        self.network = copy.deepcopy(teacher).requires_grad_(True)
        layers = [
            (name, module)
            for name, module in self.network.named_modules()
            if isinstance(module, (nn.Conv2d, nn.Linear))
        ]
        for number, (name, layer) in enumerate(layers):
            end = recipe.static.ends if number in (0, len(layers) - 1) else 0
            bits = end or recipe.weights.bits
            weights = WeightQuantizer(bits, recipe.weights.range, len(layer.weight))
            x = None
            if number:
                x = activation_quantizer(end or recipe.activations.bits, recipe.static)
            room, _, leaf = name.rpartition(".")
            setattr(self.network.get_submodule(room), leaf, StaticLayer(layer, weights, x))

    def forward(self, images: Tensor) -> Seen:
        """See Student. `features` are the outputs of the four stages."""
        return see_resnet(self.network, images)

    def integer_weights(self) -> Sequence[IntegerWeight]:
        """See Student."""
        named = dict(self.named_parameters())
        return [
            IntegerWeight(name, named[name], layer.quantizer.codes) for name, layer in self.layers()
        ]

    def layers(self) -> Iterator[tuple[str, StaticLayer]]:
        """The name of every quantized weight among the parameters, and its layer."""
        for name, module in self.named_modules():
            if isinstance(module, StaticLayer):
                yield f"{name}.layer.weight", module

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> None:
        """See Student. Called again, ranges widen, move on or stay, by their kind."""
        observe_ranges(self, True)
        try:
            self(images)
        finally:
            observe_ranges(self, False)


class ResNetTeacher:
    """A float ResNet as a Teacher: its parameters are left alone."""

    def __init__(self, network: ResNet) -> None:
        self.network = network

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Seen:
        """images: normalised [B, C, H, W]."""
        return see_resnet(self.network, images)


def see_resnet(network: ResNet, images: Tensor) -> Seen:
    """A ResNet's answer as teacher or student: logits, and the outputs of its stages [B, C, h, w]."""
    stages = network.stages(images)
    return Seen(logits=network.forward_head(stages[-1]).float(), features=stages)
