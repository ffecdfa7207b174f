"""The float execution: what the model computes before anything is quantized.

On a model whose transforms are folded in, it applies them too, and so shows that folding changes nothing.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from qvit.models.dense import Dense
from qvit.models.vit import Attention, Mlp, PatchEmbed, ViT
from qvit_kernels.reference import (
    block_transform,
    gelu,
    normalize_heads,
    split_heads,
    unfold_patches,
)


class Float:
    """fp32, through torch's own operations."""

    def embed(self, images: Tensor, embed: PatchEmbed) -> Tensor:
        """Patch tokens, fp32 [B, P, D]."""
        if embed.proj.scheme is not None:
            images = images * embed.gain.view(-1, 1, 1) + embed.offset.view(-1, 1, 1)
        return self.product(unfold_patches(images, embed.patch), embed.proj)

    def tokens(self, images: Tensor, vit: ViT) -> Tensor:
        """See Execution."""
        return vit.place(self.embed(images, vit.patch_embed))

    def norm(self, x: Tensor, norm: nn.LayerNorm, to: Dense) -> Tensor:
        """See Execution."""
        return self.transform(norm(x.float()), to)

    def qkv(self, h: Tensor, attn: Attention) -> tuple[Tensor, Tensor, Tensor]:
        """See Execution."""
        q, k, v = split_heads(self.product(h, attn.qkv), attn.heads)
        if attn.norm is not None:
            q, k = normalize_heads(q, k, attn.norm, attn.rotation)
        return q, k, v

    def attention(self, q: Tensor, k: Tensor, v: Tensor, attn: Attention) -> Tensor:
        """See Execution."""
        return self.attend(q, k, v, attn)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attn: Attention) -> Tensor:
        """Attention, [B, T, H*d]."""
        out = F.scaled_dot_product_attention(q, k, v, scale=attn.softmax_scale)
        return out.transpose(1, 2).flatten(-2)

    def residual(self, x: Tensor, h: Tensor, dense: Dense) -> Tensor:
        """See Execution."""
        return x + self.product(h, dense)

    def gelu(self, h: Tensor, mlp: Mlp) -> Tensor:
        """See Execution."""
        return self.transform(gelu(self.product(h, mlp.fc1), mlp.gelu), mlp.fc2)

    def head(self, x: Tensor, dense: Dense) -> Tensor:
        """See Execution."""
        return self.logits(self.transform(x, dense), dense)

    def logits(self, h: Tensor, dense: Dense) -> Tensor:
        """See Execution."""
        return self.product(h, dense)

    def product(self, x: Tensor, dense: Dense) -> Tensor:
        """The Linear of every step: [..., N]."""
        return F.linear(x, dense.weight, dense.bias)

    def transform(self, x: Tensor, to: Dense) -> Tensor:
        """The input of a Linear as it arrives there, [..., K]."""
        return block_transform(x, to.transform)
