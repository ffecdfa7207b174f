"""A model that changes its bits computes what one that was made with them does."""

import pytest
import torch

from qvit.models.folding import fold
from qvit.models.plan import plan_scheme
from qvit.models.simulated import Simulated
from qvit.models.switching import SwitchableModel
from qvit.recipe import Recipe
from tests.executions import both
from tests.support import float_vit, images_for

RECIPE = Recipe.preset("qvit", weight_bits=4, activation_bits=4).without_images()


def uniform(bits: int) -> Recipe:
    """All layers, and the attention products, at the same bits."""
    layers = [f"layers.{name}=W{bits}A{bits}" for name in ("*", "blocks.*.*.*")]
    return RECIPE.override(
        [*layers, f"layers.patch_embed.proj=W{bits}A8", f"layers.blocks.*.attn=A{bits}"]
    )


MIXED = RECIPE.override(
    ["layers.patch_embed.proj=W3", "layers.blocks.0.attn.qkv=W5A3", "layers.blocks.1.attn=A6"]
)


@pytest.fixture(scope="module")
def switchable():
    vit = float_vit()
    schemes = {bits: plan_scheme(vit.config, uniform(bits)) for bits in range(2, 9)}
    folded = fold(vit, plan_scheme(vit.config, RECIPE), seed=0)
    return SwitchableModel(folded, schemes, "mse", stride=1)


@pytest.mark.parametrize("recipe", [MIXED, uniform(8), uniform(2), RECIPE])
def test_any_bits_are_those_of_a_model_made_with_them(switchable, recipe):
    expected, _ = both(float_vit(), recipe)
    images = images_for(expected)
    switchable.take(plan_scheme(expected.config, recipe))
    with torch.no_grad():
        assert torch.equal(switchable.vit(images, Simulated()), expected(images, Simulated()))
