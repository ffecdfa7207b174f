"""timm's VisionTransformer, read into the project's own: what is supported, its shape, and its weights."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from timm.layers.attention import Attention as TimmAttention
from timm.layers.mlp import Mlp as TimmMlp
from timm.layers.patch_embed import PatchEmbed as TimmPatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from qvit import zoo
from qvit.errors import UsageError
from qvit.models.config import ViTConfig
from qvit.models.dense import Dense
from qvit.models.validity import POOLS
from qvit.models.vit import ViT
from qvit.zoo import Source

SUPPORTED = (
    "plain ViT and DeiT blocks of timm's VisionTransformer: deit*, deit3*, vit_* (augreg, clip, dinov2, "
    "register and distillation tokens, LayerScale, QK-norm, class-token or average pooling); `qvit models` lists them"
)


def read_model(model: nn.Module, pretrained_cfg: Mapping[str, Any]) -> ViT:
    """The float ViT with the weights of a timm model. Raises UsageError, naming the reason, for any other kind."""
    config = read_config(model, pretrained_cfg)
    vit = ViT(config, None, Dense)
    vit.load_state_dict(_weights(model, vit), strict=True)
    return vit.eval()


def read_shape(source: Source) -> ViTConfig:
    """The shape of a source's model, without weights. Raises UsageError for one that is no plain ViT."""
    with torch.device("meta"):
        return read_config(zoo.build(source), source.pretrained_cfg)


def read_config(model: nn.Module, pretrained_cfg: Mapping[str, Any]) -> ViTConfig:
    """The shape of a timm model. Raises UsageError, naming the reason, where it is not a plain ViT."""
    reason = next(obstacles(model), None)
    if reason is not None:
        name = pretrained_cfg.get("architecture") or type(model).__name__
        raise UsageError(f"{name} cannot be quantized: {reason}. What works: {SUPPORTED}")
    assert isinstance(model, VisionTransformer)
    block: Any = model.blocks[0]
    patch: Any = model.patch_embed
    return ViTConfig(
        image_size=tuple(patch.img_size),
        patch_size=tuple(patch.patch_size),
        in_chans=patch.proj.in_channels,
        mean=_per_channel(pretrained_cfg["mean"], patch.proj.in_channels),
        std=_per_channel(pretrained_cfg["std"], patch.proj.in_channels),
        num_classes=model.num_classes,
        embed_dim=model.embed_dim,
        depth=len(model.blocks),
        num_heads=block.attn.num_heads,
        head_dim=block.attn.head_dim,
        hidden_dim=block.mlp.fc1.out_features,
        class_token=model.cls_token is not None,
        dist_token=hasattr(model, "dist_token"),
        reg_tokens=0 if model.reg_token is None else model.reg_token.shape[1],
        pos_embed=model.pos_embed is not None,
        no_embed_class=model.no_embed_class,
        pre_norm=isinstance(model.norm_pre, nn.LayerNorm),
        final_norm=isinstance(model.norm, nn.LayerNorm),
        fc_norm=isinstance(model.fc_norm, nn.LayerNorm),
        global_pool=model.global_pool,
        pool_include_prefix=model.pool_include_prefix,
        qk_norm=isinstance(block.attn.q_norm, nn.LayerNorm),
        norm_eps=block.norm1.eps,
        gelu=_gelu(block.mlp.act) or "",
    )


def obstacles(model: nn.Module) -> Iterator[str]:
    """Everything about a model that the project's ViT cannot express, as clauses of a sentence."""
    if type(model) not in (VisionTransformer, VisionTransformerDistilled):
        yield f"it is a {type(model).__name__}, not a plain VisionTransformer"
        return
    assert isinstance(model, VisionTransformer)
    if type(model.patch_embed) is not TimmPatchEmbed or not _is_identity(model.patch_embed.norm):
        yield f"its patch embedding is a {type(model.patch_embed).__name__} with a stem or a norm of its own"
    if isinstance(model, VisionTransformerDistilled) and model.reg_token is not None:
        yield "it has register tokens beside a distillation token, which timm leaves out of its forward pass"
    if isinstance(model, VisionTransformerDistilled) and model.no_embed_class:
        yield "its distillation token has no position embedding, but its weights have one"
    if len(model.blocks) == 0:
        yield "it has no blocks"
        return
    if getattr(model.patch_embed, "dynamic_img_pad", False):
        yield "it pads images to whole patches (dynamic_img_pad)"
    if model.in_chans != 3:
        yield f"it takes images of {model.in_chans} channels, and qvit feeds RGB"
    if model.attn_pool is not None or model.global_pool not in POOLS:
        yield f"its pooling is {model.global_pool!r}, which is none of {', '.join(POOLS)}"
    eps = {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)}
    if len(eps) > 1:
        yield f"its norms have several epsilons: {sorted(eps)}"
    for name in ("norm_pre", "norm", "fc_norm"):
        yield from _foreign_norm(getattr(model, name), name)
    for i, block in enumerate(model.blocks):
        for reason in _block_obstacles(block):
            yield f"block {i} {reason}"
            return


def _block_obstacles(block: Any) -> Iterator[str]:
    if type(block) is not TimmBlock:
        yield f"is a {type(block).__name__}"
        return
    if type(block.attn) is not TimmAttention or getattr(block.attn, "gate", None) is not None:
        yield "has another attention than softmax(Q K^T) V"
    elif not _is_identity(block.attn.norm):
        yield "normalises the attention output"
    if type(block.mlp) is not TimmMlp or not isinstance(block.mlp.fc1, nn.Linear):
        yield f"has a {type(block.mlp).__name__} in place of a two-layer perceptron"
    elif not _is_identity(block.mlp.norm):
        yield "normalises inside its perceptron"
    elif _gelu(block.mlp.act) is None:
        yield f"has the activation {type(block.mlp.act).__name__}, not GELU"
    for norm in (block.norm1, block.norm2, block.attn.q_norm, block.attn.k_norm):
        yield from _foreign_norm(norm, "norm")


def _foreign_norm(norm: Any, name: str) -> Iterator[str]:
    if _is_identity(norm) or (isinstance(norm, nn.LayerNorm) and norm.bias is not None):
        return
    yield f"has {name} = {type(norm).__name__}, not an affine LayerNorm"


def _gelu(act: Any) -> str | None:
    """How an activation approximates GELU: "none" or "tanh"; None for another activation."""
    if type(act).__name__ == "GELUTanh":
        return "tanh"
    return getattr(act, "approximate", "none") if type(act).__name__ == "GELU" else None


def _is_identity(module: nn.Module | None) -> bool:
    return module is None or isinstance(module, nn.Identity)


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    """timm gives one value a channel, or one for all of them."""
    given = tuple(float(v) for v in values)
    return given if len(given) == channels else given[:1] * channels


@torch.no_grad()
def _weights(model: nn.Module, vit: ViT) -> dict[str, torch.Tensor]:
    """timm's state under our names: LayerScale multiplied in, absent biases zero, the patch kernel flat."""
    state = {name: value.detach().float() for name, value in model.state_dict().items()}
    for i in range(vit.config.depth):
        for scale, linear in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
            gamma = state.pop(f"blocks.{i}.{scale}.gamma", None)
            if gamma is not None:
                # not in place: fp32 weights here are still the timm model's own
                for kind, factor in (("weight", gamma.unsqueeze(1)), ("bias", gamma)):
                    name = f"blocks.{i}.{linear}.{kind}"
                    if name in state:
                        state[name] = state[name] * factor
    kernel = state["patch_embed.proj.weight"]
    state["patch_embed.proj.weight"] = kernel.flatten(1)
    for name, (rows, _) in vit.config.linears().items():
        state.setdefault(f"{name}.bias", torch.zeros(rows))
    return state
