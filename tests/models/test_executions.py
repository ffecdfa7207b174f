"""The three executions of one definition: simulated and integer agree step by step, on the same inputs."""

import pytest
import torch

from qvit.models.floating import Float
from qvit.models.integer import Integer
from qvit.models.simulated import Simulated
from qvit.recipe import Recipe
from qvit_kernels import ops
from tests.executions import SideBySide, both
from tests.support import SHAPES, float_vit, images_for

RECIPES = {
    "W8A8": Recipe.preset("qvit", weight_bits=8, activation_bits=8),
    "W4A8": Recipe.preset("qvit", weight_bits=4, activation_bits=8),
    "W4A4": Recipe.preset("qvit", weight_bits=4, activation_bits=4),
    "W3A5 without groups": Recipe.preset("plain", weight_bits=3, activation_bits=5),
    "W4A4, weight groups, bf16 residual": Recipe.preset(
        "qvit", weight_bits=4, activation_bits=4
    ).override(["weights.group=16", "residual=bfloat16"]),
}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_integers_equal_simulation_step_by_step(recipe, backend):
    simulated, integer = both(float_vit("three heads"), RECIPES[recipe])
    pair = SideBySide(simulated, integer)
    with torch.inference_mode(), ops.use_backend(backend):
        simulated(images_for(simulated), pair)
    assert pair.compared == 1 + 2 * 9 + 1


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_runs_in_integers(shape):
    simulated, integer = both(float_vit(shape), RECIPES["W4A4"])
    pair = SideBySide(simulated, integer)
    images = images_for(simulated)
    with torch.inference_mode():
        expected = simulated(images, pair)
        found = integer(images, Integer())
    assert found.shape == expected.shape
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_eight_bits_stay_close_to_float(shape):
    vit = float_vit(shape)
    _, integer = both(vit, RECIPES["W8A8"])
    images = images_for(vit, count=8)
    with torch.inference_mode():
        expected, found = vit(images, Float()), integer(images, Integer())
    assert (found - expected).abs().mean() < 0.05 * expected.std()


def test_gradients_reach_every_weight_and_scale():
    simulated, _ = both(float_vit("LayerScale"), RECIPES["W4A4"])
    simulated(images_for(simulated), Simulated()).square().sum().backward()
    for name, parameter in simulated.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_grey_images_meet_no_error_in_the_patch_embedding():
    vit = float_vit()
    simulated, _ = both(vit, RECIPES["W4A4"])
    mean, std = torch.tensor(vit.config.mean), torch.tensor(vit.config.std)
    black = (-mean / std).view(1, -1, 1, 1).expand(1, -1, *vit.config.image_size)
    grey = torch.zeros_like(black)
    with torch.inference_mode():
        errors = [
            (Simulated().embed(x, simulated.patch_embed) - Float().embed(x, vit.patch_embed))
            .abs()
            .max()
            for x in (grey, black)
        ]
    assert errors[0] < 0.1 * errors[1]
