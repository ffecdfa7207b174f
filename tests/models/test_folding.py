import pytest
import torch

from qvit.models.floating import Float
from qvit.models.folding import fold
from qvit.models.plan import plan_scheme
from qvit.recipe import Recipe
from tests.support import SHAPES, float_vit, images_for

RECIPE = Recipe.preset("qvit", weight_bits=4, activation_bits=4)


@pytest.mark.parametrize("shape", SHAPES)
def test_folded_transforms_leave_the_float_function_unchanged(shape):
    vit = float_vit(shape)
    folded = fold(vit, plan_scheme(vit.config, RECIPE), seed=0)
    images = images_for(vit)
    with torch.inference_mode():
        torch.testing.assert_close(
            folded(images, Float()), vit(images, Float()), rtol=1e-3, atol=1e-3
        )


def test_every_wanted_transform_changes_its_weights():
    vit = float_vit()
    folded = fold(vit, plan_scheme(vit.config, RECIPE), seed=0)
    plain = fold(vit, plan_scheme(vit.config, Recipe.preset("plain")), seed=0)
    states = folded.state_dict(), plain.state_dict()
    for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        weights = [s[f"blocks.0.{name}.weight"] for s in states]
        assert (weights[0] - weights[1]).abs().max() > 0.01, name
    assert states[0]["blocks.0.mlp.fc2.signs"].unique().tolist() == [-1, 1]
    assert "blocks.0.mlp.fc2.signs" not in states[1]


def test_seed_decides_the_signs():
    vit = float_vit()
    scheme = plan_scheme(vit.config, RECIPE)
    name = "blocks.1.attn.qkv.signs"
    signs = [fold(vit, scheme, seed=s).state_dict()[name] for s in (0, 0, 1)]
    assert torch.equal(signs[0], signs[1])
    assert not torch.equal(signs[0], signs[2])
