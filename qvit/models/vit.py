"""The Vision Transformer, once. What its steps compute is an execution's business; see execution.py.

A block is seven steps, and on a GPU seven launches: each step ends by writing what the next one reads, in
integers where there are integers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qvit.models.config import ViTConfig
from qvit.models.execution import Execution
from qvit.quant.schemes import AttentionScheme, ModelScheme
from qvit_kernels.reference import BlockTransform, QKNorm, block_transform

# Dense takes a scheme or none, IntegerDense needs one; which of them fills a model is its maker's
# choice, and each execution knows the container it was written for.
MakeDense = Callable[[int, int, Any], nn.Module]


class PatchEmbed(nn.Module):
    """The patch projection, and the affine map from normalised pixels to signed 8-bit codes.

    gain, offset: fp32 [C]; code = x * gain + offset undoes the normalisation, so 8-bit pixels lose nothing.
    """

    proj: Any
    gain: Tensor
    offset: Tensor

    def __init__(self, config: ViTConfig, proj: nn.Module) -> None:
        super().__init__()
        self.patch = config.patch_size
        self.proj = proj
        mean, std = (torch.tensor(v, dtype=torch.float32) for v in (config.mean, config.std))
        self.register_buffer("gain", 255 * std, persistent=False)
        self.register_buffer("offset", 255 * mean - 128, persistent=False)


class Attention(nn.Module):
    """Parameters of multi-head attention; with QK-norm the rotation cannot be folded, and `signs` holds it.

    value_signs: fp32 [d], those of the rotation that was folded into V and proj; None in a model without one, and in
    one that was read back from a file, where nobody needs to know.
    """

    qkv: Any
    proj: Any
    scheme: Any
    signs: Tensor | None
    value_signs: Tensor | None

    def __init__(
        self, config: ViTConfig, qkv: nn.Module, proj: nn.Module, scheme: AttentionScheme | None
    ) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.softmax_scale = config.head_dim**-0.5
        self.scheme = scheme
        self.qkv = qkv
        self.proj = proj
        self.q_norm = nn.LayerNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = nn.LayerNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        online = config.qk_norm and scheme is not None and scheme.rotate_qk
        self.register_buffer("signs", torch.ones(config.head_dim) if online else None)
        self.register_buffer("value_signs", None, persistent=False)

    @property
    def norm(self) -> QKNorm | None:
        """The parameters of QK-norm as the arithmetic takes them, if there are any."""
        q, k = self.q_norm, self.k_norm
        if q is None or k is None:
            return None
        return QKNorm(q.weight, q.bias, k.weight, k.bias, q.eps)

    @property
    def rotation(self) -> BlockTransform | None:
        """The transform that follows QK-norm, if any."""
        return None if self.signs is None else BlockTransform(self.signs, self.signs.numel())

    @property
    def value_basis(self) -> Tensor | None:
        """fp32 [d, d]: a head's output times it is in the basis of the float model; None where it is already."""
        signs = self.value_signs
        if signs is None:
            return None
        unit = torch.eye(signs.numel(), device=signs.device)
        return block_transform(unit, BlockTransform(signs, signs.numel())).T


class Mlp(nn.Module):
    """Parameters of the two-layer perceptron."""

    fc1: Any
    fc2: Any

    def __init__(self, config: ViTConfig, fc1: nn.Module, fc2: nn.Module) -> None:
        super().__init__()
        self.gelu = config.gelu
        self.fc1 = fc1
        self.fc2 = fc2


class Block(nn.Module):
    """A pre-norm transformer block; LayerScale is folded into proj and fc2 when weights are read."""

    def __init__(self, config: ViTConfig, attn: Attention, mlp: Mlp) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, config.norm_eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(config.embed_dim, config.norm_eps)
        self.mlp = mlp

    def forward(self, x: Tensor, run: Execution) -> Tensor:
        """x: residual stream [B, T, D]; returns the same shape and dtype."""
        h = run.norm(x, self.norm1, to=self.attn.qkv)
        q, k, v = run.qkv(h, self.attn)
        h = run.attention(q, k, v, self.attn)
        x = run.residual(x, h, self.attn.proj)
        h = run.norm(x, self.norm2, to=self.mlp.fc1)
        h = run.gelu(h, self.mlp)
        return run.residual(x, h, self.mlp.fc2)

    def linears(self) -> tuple[Any, ...]:
        """The containers of its Linears, in the order in which it computes them."""
        return self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2


class ViT(nn.Module):
    """Parameters under timm's names. `dense` makes the container of every Linear: Dense or IntegerDense."""

    head: Any
    head_dist: Any

    def __init__(self, config: ViTConfig, scheme: ModelScheme | None, dense: MakeDense) -> None:
        super().__init__()
        self.config = config
        self.residual_dtype = torch.float32 if scheme is None else getattr(torch, scheme.residual)
        linears = {
            name: dense(*shape, None if scheme is None else scheme.linears[name])
            for name, shape in config.linears().items()
        }
        dim, patches = config.embed_dim, config.num_patches
        self.patch_embed = PatchEmbed(config, linears["patch_embed.proj"])
        self.cls_token = _token(config.class_token, dim)
        self.dist_token = _token(config.dist_token, dim)
        self.reg_token = _token(config.reg_tokens, dim)
        positions = patches + (0 if config.no_embed_class else config.num_prefix_tokens)
        self.pos_embed = _token(positions if config.pos_embed else 0, dim)
        self.norm_pre = _norm(config.pre_norm, config)
        self.blocks = nn.ModuleList(_block(config, scheme, linears, i) for i in range(config.depth))
        self.norm = _norm(config.final_norm, config)
        self.fc_norm = _norm(config.fc_norm, config)
        self.head = linears.get("head")
        self.head_dist = linears.get("head_dist")
        self.float()  # whatever torch's default dtype is

    def forward(self, images: Tensor, run: Execution, kept: Tensor | None = None) -> Tensor:
        """images: normalised float [B, C, H, W]; returns logits fp32 [B, num_classes].

        kept: int64 [B, K], the patches to look at; None for all of them.
        """
        return self.forward_head(self.forward_features(images, run, kept), run)

    def forward_features(
        self, images: Tensor, run: Execution, kept: Tensor | None = None
    ) -> Tensor:
        """Tokens after the last block and the final norm: fp32 [B, T, D]; T counts the kept patches only."""
        x = self.begin(images, run, kept)
        for block in self.blocks:
            x = block(x, run)
        return self.finish(x)

    def begin(self, images: Tensor, run: Execution, kept: Tensor | None = None) -> Tensor:
        """The residual stream as the first block reads it: [B, T, D] in its dtype."""
        x = self.with_prefix(run.embed(images, self.patch_embed))
        if kept is not None:
            x = _keep(x, kept, self.config.num_prefix_tokens)
        if self.norm_pre is not None:
            x = self.norm_pre(x)
        return x.to(self.residual_dtype)

    def finish(self, x: Tensor) -> Tensor:
        """From the residual stream behind the last block, [B, T, D], to tokens fp32 [B, T, D]."""
        x = x.float()
        return x if self.norm is None else self.norm(x)

    def forward_head(self, tokens: Tensor, run: Execution) -> Tensor:
        """Pool tokens [B, T, D] and classify; without a head (num_classes = 0) the pooled features."""
        if self.config.dist_token:
            first = _classify(tokens[:, 0], self.head, run)
            return (first + _classify(tokens[:, 1], self.head_dist, run)) / 2
        x = _pool(tokens, self.config)
        return _classify(x if self.fc_norm is None else self.fc_norm(x), self.head, run)

    def with_prefix(self, patches: Tensor) -> Tensor:
        """Embedded patches [B, P, D] with class, distillation and register tokens before them, and positions added."""
        tokens = (self.cls_token, self.dist_token, self.reg_token)
        prefix = [t.expand(patches.shape[0], -1, -1) for t in tokens if t is not None]
        if self.pos_embed is None:
            return torch.cat([*prefix, patches], dim=1)
        if self.config.no_embed_class:
            return torch.cat([*prefix, patches + self.pos_embed], dim=1)
        return torch.cat([*prefix, patches], dim=1) + self.pos_embed


def _keep(x: Tensor, kept: Tensor, prefix: int) -> Tensor:
    """Prefix tokens and the patches `kept` (int64 [B, K]) of tokens [B, T, D], in that order."""
    patches = x[:, prefix:].gather(1, kept.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    return torch.cat([x[:, :prefix], patches], dim=1)


def _classify(x: Tensor, head: Any, run: Execution) -> Tensor:
    return x if head is None else run.head(x, head)


def _pool(tokens: Tensor, config: ViTConfig) -> Tensor:
    if config.global_pool == "token":
        return tokens[:, 0]
    first = 0 if config.pool_include_prefix else config.num_prefix_tokens
    patches = tokens[:, first:]
    if config.global_pool == "avg":
        return patches.mean(1)
    if config.global_pool == "max":
        return patches.amax(1)
    assert config.global_pool == "avgmax"
    return 0.5 * (patches.amax(1) + patches.mean(1))


def _token(count: int, dim: int) -> nn.Parameter | None:
    return nn.Parameter(torch.zeros(1, int(count), dim)) if count else None


def _norm(present: bool, config: ViTConfig) -> nn.LayerNorm | None:
    return nn.LayerNorm(config.embed_dim, config.norm_eps) if present else None


def _block(config: ViTConfig, scheme: ModelScheme | None, linears: dict[str, Any], i: int) -> Block:
    name = f"blocks.{i}"
    attention = None if scheme is None else scheme.attentions[f"{name}.attn"]
    attn = Attention(config, linears[f"{name}.attn.qkv"], linears[f"{name}.attn.proj"], attention)
    return Block(config, attn, Mlp(config, linears[f"{name}.mlp.fc1"], linears[f"{name}.mlp.fc2"]))
