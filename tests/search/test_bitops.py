"""BitOps of the models that Q-ViT publishes budgets for."""

import pytest
import timm
import torch

from qvit.models.plan import plan_scheme
from qvit.models.timm_import import read_config
from qvit.recipe import Recipe
from qvit.search.bitops import count_bitops
from tests.support import STATISTICS, timm_vit

# G of bits 2, 3, 4 and 5, patch embedding and head at 8: 21.455 is the budget in Q-ViT's own code, the others are its
# formula's.
PUBLISHED = {
    "deit_tiny_patch16_224": (6.760, 12.883, 21.455, 32.477),
    "deit_small_patch16_224": (21.887, 44.590, 76.375, 117.241),
    "deit_base_patch16_224": (77.238, 164.475, 286.607, 443.634),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_budgets(name):
    with torch.device("meta"):
        config = read_config(timm.create_model(name), STATISTICS)
    for bits, expected in zip((2, 3, 4, 5), PUBLISHED[name], strict=True):
        recipe = Recipe.preset("plain", weight_bits=bits, activation_bits=bits)
        recipe = recipe.override(["layers.head=W8A8", "layers.patch_embed.proj=W8"])
        found = sum(count_bitops(config, plan_scheme(config, recipe)).values())
        assert round(found / 1e9, 3) == expected


def test_weights_of_heads_count_by_their_mean():
    """Of one block by hand: 17 tokens of 96 channels in three heads of 32, hidden 384, 4 bits but for these heads."""
    config = read_config(timm_vit("three heads", depth=1), STATISTICS)
    recipe = Recipe.preset("plain", weight_bits=4, activation_bits=4)
    plain = count_bitops(config, plan_scheme(config, recipe))
    settings = ["qkv=W4,3,2,8,4,4,2,2,3", "proj=W4,2,3A5"]
    recipe = recipe.override([f"layers.blocks.0.attn.{setting}" for setting in settings])
    found = count_bitops(config, plan_scheme(config, recipe))
    row, column = 17 * 32 * 96, 17 * 96 * 32  # a head's rows of qkv, its columns of proj
    assert found["blocks.0.attn.qkv"] == row * (4 + 3 + 2 + 8 + 4 + 4 + 2 + 2 + 3) * 4
    assert found["blocks.0.attn.proj"] == column * (4 + 2 + 3) * 5
    assert plain["blocks.0.attn.qkv"] == row * 9 * 4 * 4
    changed = {"blocks.0.attn.qkv", "blocks.0.attn.proj"}
    assert {name for name in plain if plain[name] != found[name]} == changed


def test_prefix_tokens_of_eight_bits_count_as_such():
    """Of one block by hand: 16 patches, and a class token of 8 bits where the others have 3."""
    config = read_config(timm_vit("plain", depth=1), STATISTICS)
    recipe = Recipe.preset("qvit", weight_bits=3, activation_bits=3)
    assert recipe.activations.prefix_bits == 8
    found = count_bitops(config, plan_scheme(config, recipe))
    without = recipe.override(["activations.prefix_bits=0"])
    plain = count_bitops(config, plan_scheme(config, without))
    dim, hidden = config.embed_dim, config.hidden_dim
    assert plain["blocks.0.mlp.fc1"] == 17 * dim * hidden * 3 * 3
    assert found["blocks.0.mlp.fc1"] == dim * hidden * 3 * (16 * 3 + 8)
    changed = {f"blocks.0.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert {name for name in plain if plain[name] != found[name]} == changed
