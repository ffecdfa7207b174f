"""Small real models for the tests: timm Vision Transformers of every supported shape, with random weights."""

from typing import Any

import timm
import torch
from torch import Tensor, nn

from qvit.models.timm_import import read_model
from qvit.models.vit import ViT

SMALL = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 64,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 7,
}
STATISTICS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

# One row for each way in which timm's VisionTransformer departs from the plain one.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit_tiny_patch16_224", {}),
    "average pooling, no class token": (
        "vit_tiny_patch16_224",
        {"class_token": False, "global_pool": "avg"},
    ),
    "maximum pooling": ("vit_tiny_patch16_224", {"global_pool": "avgmax"}),
    "final norm before average pooling": (
        "vit_tiny_patch16_224",
        {"global_pool": "avg", "fc_norm": False},
    ),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 4, "no_embed_class": True}),
    "registers in the position embedding": ("vit_tiny_patch16_224", {"reg_tokens": 3}),
    "no position embedding": ("vit_tiny_patch16_224", {"pos_embed": "none"}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "LayerScale": ("vit_tiny_patch16_224", {"init_values": 0.1}),
    "QK-norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "pre-norm, no patch bias": ("vit_tiny_patch16_224", {"pre_norm": True}),
    "no QKV bias": ("vit_tiny_patch16_224", {"qkv_bias": False}),
    "no bias in proj and MLP": ("vit_tiny_patch16_224", {"proj_bias": False}),
    "tanh GELU": ("vit_tiny_patch16_224", {"act_layer": "gelu_tanh"}),
    "no head": ("vit_tiny_patch16_224", {"num_classes": 0}),
    "odd widths": ("vit_tiny_patch16_224", {"embed_dim": 100, "num_heads": 5, "mlp_ratio": 1.5}),
    "oblong image": ("vit_tiny_patch16_224", {"img_size": (24, 40), "patch_size": (8, 4)}),
    "distilled, no head": ("deit_tiny_distilled_patch16_224", {"num_classes": 0}),
    "patches that leave a rest": ("vit_tiny_patch16_224", {"img_size": 35}),
    "three heads": ("vit_tiny_patch16_224", {"embed_dim": 96, "num_heads": 3}),
}


def timm_vit(shape: str = "plain", **changes: Any) -> nn.Module:
    """A timm model in eval mode whose every parameter matters (timm starts biases and tokens at zero)."""
    name, arguments = SHAPES[shape]
    torch.manual_seed(1)
    model = timm.create_model(name, pretrained=False, **{**SMALL, **arguments, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def float_vit(shape: str = "plain", **changes: Any) -> ViT:
    """The same, read into the project's own ViT."""
    return read_model(timm_vit(shape, **changes), STATISTICS)


def images_for(model: ViT, count: int = 3) -> Tensor:
    """8-bit pixels, normalised as the model wants them."""
    config = model.config
    pixels = torch.randint(0, 256, (count, config.in_chans, *config.image_size)) / 255
    mean, std = torch.tensor(config.mean).view(-1, 1, 1), torch.tensor(config.std).view(-1, 1, 1)
    return (pixels - mean) / std
