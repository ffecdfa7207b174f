"""A model's file: as small as its bits, and the same integers when it is read back."""

from itertools import pairwise

import pytest
import torch

from qvit.deployment import storage
from qvit.models.dense import IntegerDense
from qvit.models.plan import plan_scheme
from qvit.models.vit import ViT
from qvit.recipe import Recipe
from tests.executions import both
from tests.support import float_vit


def bits_recipe(bits: int) -> Recipe:
    return Recipe.preset("qvit", weight_bits=bits, activation_bits=8).without_images()


MIXED = bits_recipe(4).override(
    ["layers.*.*=W2", "layers.blocks.0.*.*=W3", "layers.blocks.0.attn.qkv=W5", "layers.head=W7"]
)
RECIPES = {**{f"W{bits}": bits_recipe(bits) for bits in range(2, 9)}, "mixed": MIXED}


def emptied(model: ViT, recipe: Recipe) -> ViT:
    """A model of the same shape and scheme, with nothing in it."""
    return ViT(model.config, plan_scheme(model.config, recipe), IntegerDense)


@pytest.mark.parametrize("shape", ["plain", "odd widths", "QK-norm"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_model_comes_back_as_it_was(name, shape, tmp_path):
    _, model = both(float_vit(shape), RECIPES[name])
    storage.save_weights(model, tmp_path)
    found = emptied(model, RECIPES[name])
    storage.check_header(tmp_path, found)
    storage.load_weights(tmp_path, found)
    expected, state = model.state_dict(), found.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())


@pytest.mark.parametrize("name", RECIPES)
def test_bytes_are_known_before_there_are_weights(name, tmp_path):
    _, model = both(float_vit(), RECIPES[name])
    storage.save_weights(model, tmp_path)
    data = (tmp_path / storage.WEIGHTS).read_bytes()
    with torch.device("meta"):
        planned = emptied(model, RECIPES[name])
    assert storage.tensor_bytes(planned) == len(data) - 8 - int.from_bytes(data[:8], "little")
    assert storage.file_bytes(planned) == len(data)


def test_every_bit_less_saves_an_eighth_of_a_byte():
    """Without groups and transforms nothing but the codes depends on the bits."""
    plain = [Recipe.preset("plain", weight_bits=bits) for bits in range(2, 9)]
    vit = float_vit()
    sizes = [
        storage.tensor_bytes(ViT(vit.config, plan_scheme(vit.config, recipe), IntegerDense))
        for recipe in plain
    ]
    weights = sum(n * k for n, k in vit.config.linears().values())
    assert [b - a for a, b in pairwise(sizes)] == [weights // 8] * 6
