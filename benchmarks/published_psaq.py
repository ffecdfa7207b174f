"""PSAQ-ViT's images as its authors publish the algorithm: every tensor of every definition, kept for the backward pass.

Written from the published formulas, for measuring against: attention in the open, all pairs of patches as products
of their features, and every kernel of the density. Weights take gradients, which nobody uses, as there.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BANDWIDTH, POINTS = 0.01, 10


def watched_forward(model: Any, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits of a plain timm ViT, and the attention output of every block, [B, H, T, d]."""
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    outputs = []
    for block in model.blocks:
        attention = block.attn
        batch, count, _ = tokens.shape
        qkv = attention.qkv(block.norm1(tokens))
        q, k, v = qkv.view(batch, count, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * attention.scale).softmax(-1)
        output = weights @ v
        outputs.append(output)
        tokens = tokens + attention.proj(output.transpose(1, 2).reshape(batch, count, -1))
        tokens = tokens + block.mlp(block.norm2(tokens))
    return model.forward_head(model.norm(tokens)), outputs


def entropy(output: Tensor) -> Tensor:
    """Differential entropy of one block's patch similarities, from its attention output [B, H, T, d]."""
    patches = output.mean(1)[:, 1:]
    count = len(patches)
    pairs = F.cosine_similarity(patches.unsqueeze(1), patches.unsqueeze(2), dim=-1)
    low, high = pairs.min().item(), pairs.max().item()
    places = torch.linspace(low, high, POINTS).expand(count, -1)
    differences = places.unsqueeze(-1) - pairs.view(count, 1, -1)
    kernels = torch.exp(-(differences**2) / (2 * BANDWIDTH**2)) / math.sqrt(
        2 * math.pi * BANDWIDTH**2
    )
    density = kernels.mean(-1) + 1e-4
    return torch.trapezoid(-density * density.log(), places, dim=-1).mean()


def variation(images: Tensor) -> Tensor:
    """Four norms of differences, over the whole batch."""
    return (
        (images[..., :-1] - images[..., 1:]).norm()
        + (images[..., :-1, :] - images[..., 1:, :]).norm()
        + (images[..., 1:, :-1] - images[..., :-1, 1:]).norm()
        + (images[..., :-1, :-1] - images[..., 1:, 1:]).norm()
    )


def published_loss(model: nn.Module, images: Tensor, labels: Tensor, wanted: float) -> Tensor:
    """The loss of images [B, 3, H, W] as the network sees them; `wanted`: total variation of the batch."""
    logits, outputs = watched_forward(model, images)
    entropies = torch.stack([entropy(output) for output in outputs])
    return (
        F.cross_entropy(logits, labels)
        + 0.05 * (variation(images) - wanted).abs()
        - entropies.sum()
    )
