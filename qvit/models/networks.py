"""Any float model that the project can learn from: a plain ViT in its own block, or timm's ResNet."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from qvit.errors import UsageError
from qvit.models.config import ViTConfig
from qvit.models.resnet import (
    SUPPORTED_RESNETS,
    ResNet,
    ResNetConfig,
    read_resnet,
    read_resnet_config,
    resnet_obstacles,
)
from qvit.models.timm_import import SUPPORTED, obstacles, read_config, read_model
from qvit.models.vit import ViT

Network = ViT | ResNet
NetworkConfig = ViTConfig | ResNetConfig


def read_network(model: nn.Module, pretrained_cfg: Mapping[str, Any]) -> Network:
    """A timm model as what it is. Raises UsageError, naming what is in the way of both kinds, for any other."""
    if _is_resnet(model, pretrained_cfg):
        return read_resnet(model, pretrained_cfg)
    return read_model(model, pretrained_cfg)


def read_network_config(model: nn.Module, pretrained_cfg: Mapping[str, Any]) -> NetworkConfig:
    """Its shape, on any device, without its weights. Raises as `read_network`."""
    if _is_resnet(model, pretrained_cfg):
        return read_resnet_config(model, pretrained_cfg)
    return read_config(model, pretrained_cfg)


def _is_resnet(model: nn.Module, pretrained_cfg: Mapping[str, Any]) -> bool:
    not_resnet = next(resnet_obstacles(model), None)
    not_vit = next(obstacles(model), None)
    if not_resnet is not None and not_vit is not None:
        name = pretrained_cfg.get("architecture") or type(model).__name__
        raise UsageError(
            f"{name} cannot be used: {not_vit}, and {not_resnet}. What works: {SUPPORTED}; and {SUPPORTED_RESNETS}"
        )
    return not_resnet is None
