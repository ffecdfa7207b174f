"""Short names, each pinned to one set of timm weights, and the nearest names to a misspelt one."""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from qvit.demo.packaged import MODELS

# Every alias carries its weight tag. timm's untagged names mean whatever tag is listed first, which
# changes: vit_base_patch16_224 is augreg2 today (85.1 % top-1), while the papers report
# augreg_in21k_ft_in1k (84.5 %).
_ALIASES = {
    "deit_t": "deit_tiny_patch16_224.fb_in1k",
    "deit_s": "deit_small_patch16_224.fb_in1k",
    "deit_b": "deit_base_patch16_224.fb_in1k",
    "deit_t_distilled": "deit_tiny_distilled_patch16_224.fb_in1k",
    "deit_s_distilled": "deit_small_distilled_patch16_224.fb_in1k",
    "deit_b_distilled": "deit_base_distilled_patch16_224.fb_in1k",
    "deit3_s": "deit3_small_patch16_224.fb_in1k",
    "deit3_m": "deit3_medium_patch16_224.fb_in1k",
    "deit3_b": "deit3_base_patch16_224.fb_in1k",
    "deit3_l": "deit3_large_patch16_224.fb_in1k",
    "vit_t": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "vit_s": "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "vit_b": "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "vit_l": "vit_large_patch16_224.augreg_in21k_ft_in1k",
    "dinov2_s": "vit_small_patch14_dinov2.lvd142m",
    "dinov2_b": "vit_base_patch14_dinov2.lvd142m",
    "dinov2_l": "vit_large_patch14_dinov2.lvd142m",
    "dinov2_s_reg": "vit_small_patch14_reg4_dinov2.lvd142m",
    "dinov2_b_reg": "vit_base_patch14_reg4_dinov2.lvd142m",
    "dinov2_l_reg": "vit_large_patch14_reg4_dinov2.lvd142m",
    # CLIP's image tower fine-tuned on ImageNet-1k: it has classes, so its accuracy can be measured.
    "clip_b16": "vit_base_patch16_clip_224.openai_ft_in1k",
    "clip_l14": "vit_large_patch14_clip_224.openai_ft_in1k",
    "swin_t": "swin_tiny_patch4_window7_224.ms_in1k",
    "swin_s": "swin_small_patch4_window7_224.ms_in1k",
    # Pre-trained on ImageNet-22k (85.28 %), as in PTQ4ViT's and NNCF's tables; FQ-ViT's 83.60 % is
    # ms_in1k.
    "swin_b": "swin_base_patch4_window7_224.ms_in22k_ft_in1k",
}


def aliases() -> Mapping[str, str]:
    """The short names and the timm name with weight tag that each stands for."""
    return MappingProxyType(_ALIASES)


def catalogue() -> list[dict[str, Any]]:
    """One row for each short name, counted on models without storage; nothing is downloaded.

    Returns:
        Rows with `alias`, `timm_name`, `params_millions`, `input_size` ([channels, height, width]),
        `license` (None where timm records none) and `quantizable` (True for the plain
        VisionTransformer family).
    """
    import timm
    import torch

    rows = []
    with torch.device("meta"):  # 50 ms a model, where real storage would take seconds
        for name, folder in MODELS.items():
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            cfg, architecture = config["pretrained_cfg"], config["architecture"]
            model = timm.create_model(architecture, pretrained_cfg=cfg, **config["model_args"])
            rows.append(_describe(name, f"{architecture}.{cfg['tag']}", model))
        for alias, timm_name in _ALIASES.items():
            rows.append(_describe(alias, timm_name, timm.create_model(timm_name)))
    return rows


def _describe(alias: str, timm_name: str, model: Any) -> dict[str, Any]:
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    return {
        "alias": alias,
        "timm_name": timm_name,
        "params_millions": sum(p.numel() for p in model.parameters()) / 1e6,
        "input_size": list(model.pretrained_cfg["input_size"]),
        "license": model.pretrained_cfg.get("license"),
        "quantizable": type(model) in (VisionTransformer, VisionTransformerDistilled),
    }


def nearest_names(name: str, count: int = 5) -> list[str]:
    """The aliases and timm names (with tag) whose spelling is nearest to `name`, nearest first."""
    import timm

    # 0.6 is difflib's own default; below it, short aliases match nearly anything.
    return get_close_matches(name, [*MODELS, *_ALIASES, *timm.list_models()], n=count, cutoff=0.6)
