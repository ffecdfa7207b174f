"""Whole models through the `triton` backend, in Triton's interpreter."""

import pytest
import torch

from qvit import zoo
from qvit.demo.scenes import render
from qvit.models.integer import Integer
from qvit.models.simulated import Simulated
from qvit.models.timm_import import read_model
from qvit.recipe import Recipe
from tests.divergence import Nudged, divergence
from tests.executions import SideBySide, both
from tests.models.test_executions import HEADS, RECIPES
from tests.support import float_vit, images_for

SCHEMES = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4), "W3A3": (3, 3)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_integers_equal_simulation_step_by_step(recipe):
    simulated, integer = both(float_vit("plain", depth=1), RECIPES[recipe])
    pair = SideBySide(simulated, integer, "triton")
    with torch.inference_mode():
        simulated(images_for(simulated), pair)
    assert pair.compared == 1 + 9 + 2


@pytest.mark.parametrize("recipe", ["packed", pytest.param("wide", marks=pytest.mark.slow)])
def test_weights_of_heads_may_differ_in_their_bits(recipe):
    simulated, integer = both(float_vit("three heads", embed_dim=192, depth=1), HEADS[recipe])
    pair = SideBySide(simulated, integer, "triton")
    with torch.inference_mode():
        simulated(images_for(simulated, 1), pair)
    assert pair.compared == 1 + 9 + 2


@pytest.fixture(scope="module")
def demo_vit():
    source = zoo.resolve("demo_vit")
    return read_model(zoo.load(source), source.pretrained_cfg)


@pytest.mark.parametrize(
    "scheme",
    ["W4A4", *(pytest.param(name, marks=pytest.mark.slow) for name in ("W8A8", "W4A8", "W3A3"))],
)
def test_a_trained_model_diverges_no_more_than_one_ulp_does(demo_vit, scheme):
    """One image runs through the kernels; what one ulp does is measured on many."""
    w, a = SCHEMES[scheme]
    simulated, integer = both(demo_vit, Recipe.preset("qvit", weight_bits=w, activation_bits=a))
    scenes = [torch.from_numpy(render(5, index).image) for index in range(24)]
    images = (torch.stack(scenes).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        expected = simulated(images, Simulated())
        nudged = simulated(images, Nudged())
        found = integer(images[:1], Integer("triton"))
    each = [divergence(a[None], b[None]) for a, b in zip(expected, nudged, strict=True)]
    assert divergence(expected[:1], found) <= 1.5 * max(each)
