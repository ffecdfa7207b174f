"""timm's ResNet as a teacher or a student: its shape, what it computes on the way, and what it must not contain.

Two of the field's methods, AIT and ACQ, were published on these networks. They are not this project's own block, so
timm's module does the computing and this one says what it is.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.resnet import ResNet as TimmResNet
from torch import Tensor, nn

from qvit.errors import UsageError

SUPPORTED_RESNETS = (
    "timm's ResNet with BatchNorm and ReLU: resnet18, resnet34, resnet50 and their like"
)

_BLOCKS = (BasicBlock, Bottleneck)
# Everything that holds parameters or statistics, and everything that makes a ResNet another network.
_LEAVES = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Identity)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetConfig:
    """The shape of a ResNet; names that it shares with ViTConfig mean the same.

    Attributes:
        embed_dim: Channels of the last stage.
        operations: Multiply-adds of one image.
        activations: Values that its convolutions write for one image.
    """

    image_size: tuple[int, int]
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    embed_dim: int
    operations: int
    activations: int


class ResNet(nn.Module):
    """A timm ResNet. It is always in eval mode: BatchNorm normalises with what it learned from real images.

    The data-free methods keep it so in the student, too: statistics of synthetic batches would replace the only thing
    that a CNN remembers of its data.
    """

    def __init__(self, body: nn.Module, config: ResNetConfig) -> None:
        super().__init__()
        self.body: Any = body
        self.config = config
        self.eval()

    def train(self, mode: bool = True) -> "ResNet":
        """Does nothing but what `eval` does, for the reason above."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Images float [B, C, H, W], normalised, to logits [B, num_classes]."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """What the last stage writes, [B, embed_dim, h, w]."""
        return self.stages(images)[-1]

    def stages(self, images: Tensor) -> tuple[Tensor, ...]:
        """What the four stages write, [B, C, h, w] each."""
        body = self.body
        found = [body.maxpool(body.act1(body.bn1(body.conv1(images))))]
        for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
            found.append(stage(found[-1]))
        return tuple(found[1:])

    def forward_head(self, features: Tensor) -> Tensor:
        """From features [B, D, h, w] to logits; without a head (num_classes = 0) the pooled features [B, D]."""
        return self.body.forward_head(features)

    def norms(self) -> Iterator[nn.BatchNorm2d]:
        """Its BatchNorms, in the order of their names, which is that of the forward pass but for shortcuts."""
        return (module for module in self.body.modules() if isinstance(module, nn.BatchNorm2d))


def read_resnet(model: nn.Module, pretrained_cfg: Mapping[str, Any]) -> ResNet:
    """A timm model as a ResNet; it keeps the model's own tensors. Raises UsageError for any other kind."""
    return ResNet(model.float(), read_resnet_config(model, pretrained_cfg))


def read_resnet_config(model: nn.Module, pretrained_cfg: Mapping[str, Any]) -> ResNetConfig:
    """The shape of a timm ResNet, on any device. Raises UsageError, naming the reason, for any other kind."""
    reason = next(resnet_obstacles(model), None)
    if reason is not None:
        name = pretrained_cfg.get("architecture") or type(model).__name__
        raise UsageError(f"{name} cannot be used: {reason}. What works: {SUPPORTED_RESNETS}")
    body: Any = model
    channels, height, width = pretrained_cfg["input_size"]
    operations, activations = _count(model, (1, channels, height, width))
    return ResNetConfig(
        image_size=(height, width),
        in_chans=channels,
        mean=tuple(pretrained_cfg["mean"]),
        std=tuple(pretrained_cfg["std"]),
        num_classes=body.num_classes,
        embed_dim=body.num_features,
        operations=operations,
        activations=activations,
    )


def resnet_obstacles(model: nn.Module) -> Iterator[str]:
    """Everything about a model that makes it no plain ResNet, as clauses of a sentence."""
    if type(model) is not TimmResNet:
        yield f"it is a {type(model).__name__}, not a plain ResNet"
        return
    body: Any = model
    if body.drop_rate:
        yield "it drops features before the classifier"
    for name, module in model.named_modules():
        if type(module).__name__ in ("DropPath", "DropBlock2d"):
            continue  # does nothing in eval mode
        if hasattr(module, "weight") and not isinstance(module, _LEAVES):
            yield f"{name} is a {type(module).__name__}"
        if isinstance(module, _BLOCKS) and getattr(module, "se", None) is not None:
            yield f"{name} has channel attention"
        if isinstance(module, nn.BatchNorm2d) and not (
            module.track_running_stats and module.affine
        ):
            yield f"{name} keeps no statistics"


def _count(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """Multiply-adds and written values of one image, from shapes alone."""
    shadow = copy.deepcopy(model).to("meta").eval()
    operations = activations = 0

    def add(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal operations, activations
        weight = module.weight
        assert isinstance(weight, Tensor)
        operations += output.numel() * math.prod(weight.shape[1:])
        activations += output.numel()

    for module in shadow.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(add)
    with torch.no_grad():
        shadow(torch.empty(shape, device="meta"))
    return operations, activations
