"""A model for images of another size, or without its classifier: changes that need no training."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from qvit.models.config import ViTConfig
from qvit.models.vit import ViT


@torch.no_grad()
def resize(vit: ViT, image_size: tuple[int, int]) -> None:
    """Take images of another (height, width) from now on: timm's bicubic resampling of the position embeddings.

    Pixels beyond whole patches are left out, as timm does. Resampling loses detail: there and back again is not where
    it began. Raises ValueError for an image smaller than a patch.
    """
    before = vit.config
    if any(i < p for i, p in zip(image_size, before.patch_size, strict=True)):
        raise ValueError(
            f"images of {_times(image_size)} do not hold a patch of {_times(before.patch_size)}; take larger ones"
        )
    vit.config = dataclasses.replace(before, image_size=image_size)
    if vit.pos_embed is None or _grid(vit.config) == _grid(before):
        return
    from timm.layers.pos_embed import resample_abs_pos_embed

    resampled = resample_abs_pos_embed(
        vit.pos_embed,
        new_size=_grid(vit.config),
        old_size=_grid(before),
        num_prefix_tokens=0 if before.no_embed_class else before.num_prefix_tokens,
    )
    vit.pos_embed = nn.Parameter(resampled, requires_grad=vit.pos_embed.requires_grad)


def drop_head(vit: ViT) -> None:
    """End in pooled features, fp32 [B, D]. Only the head's own input was transformed, so they are in the float
    model's basis.
    """
    vit.head = vit.head_dist = None
    vit.config = dataclasses.replace(vit.config, num_classes=0)


def _grid(config: ViTConfig) -> list[int]:
    """Patches along height and width."""
    return [i // p for i, p in zip(config.image_size, config.patch_size, strict=True)]


def _times(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
