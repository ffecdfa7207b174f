"""The shape of a Vision Transformer: what a checkpoint needs to rebuild one without timm."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class ViTConfig:
    """A plain pre-norm ViT or DeiT. Names follow timm's VisionTransformer."""

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    in_chans: int
    mean: tuple[float, ...]  # of the normalised input, per channel, pixels in 0..1
    std: tuple[float, ...]
    num_classes: int
    embed_dim: int
    depth: int
    num_heads: int
    head_dim: int
    hidden_dim: int
    class_token: bool
    dist_token: bool
    reg_tokens: int
    pos_embed: bool
    no_embed_class: bool  # position embeddings for patches only
    pre_norm: bool
    final_norm: bool  # before pooling
    fc_norm: bool  # after pooling
    global_pool: str  # token, avg, max or avgmax
    pool_include_prefix: bool
    qk_norm: bool
    norm_eps: float
    gelu: str  # "none" (erf) or "tanh"

    @property
    def num_prefix_tokens(self) -> int:
        """Class, distillation and register tokens, which come before the patches."""
        return self.class_token + self.dist_token + self.reg_tokens

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        rows, columns = (i // p for i, p in zip(self.image_size, self.patch_size, strict=True))
        return rows * columns

    @property
    def patch_values(self) -> int:
        """Pixel values in a patch: columns of the patch embedding."""
        return self.in_chans * self.patch_size[0] * self.patch_size[1]

    def head_slices(self, name: str) -> tuple[int, int]:
        """In how many equal slices of rows, and of columns, a Linear's weight belongs to heads: the rows of qkv are
        those of Q of every head, then of K, then of V; the columns of proj take what heads put out. (1, 1): in none.
        """
        if name.endswith("attn.qkv"):
            return 3 * self.num_heads, 1
        return 1, self.num_heads if name.endswith("attn.proj") else 1

    def linears(self) -> dict[str, tuple[int, int]]:
        """Name -> (out_features, in_features) of every Linear, patch embedding and heads included, in order."""
        dim, inner = self.embed_dim, self.num_heads * self.head_dim
        shapes = {"patch_embed.proj": (dim, self.patch_values)}
        for i in range(self.depth):
            shapes[f"blocks.{i}.attn.qkv"] = (3 * inner, dim)
            shapes[f"blocks.{i}.attn.proj"] = (dim, inner)
            shapes[f"blocks.{i}.mlp.fc1"] = (self.hidden_dim, dim)
            shapes[f"blocks.{i}.mlp.fc2"] = (dim, self.hidden_dim)
        if self.num_classes:
            shapes["head"] = (self.num_classes, dim)
            if self.dist_token:
                shapes["head_dist"] = (self.num_classes, dim)
        return shapes

    def to_dict(self) -> dict[str, Any]:
        """Plain values for config.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`, also after JSON has made lists of the tuples."""
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**fields)
