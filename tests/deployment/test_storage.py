"""A model's file: as small as its bits, and the same integers when it is read back."""

import math
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from qvit.deployment import storage
from qvit.errors import InputError
from qvit.models.dense import IntegerDense
from qvit.models.plan import plan_scheme
from qvit.models.vit import ViT
from qvit.quant.slices import join_slices, multiplier_bits, split_slices
from qvit.recipe import Recipe
from qvit_kernels.reference import code_range, largest_multiplier
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


def with_heads(qkv: list[int], proj: list[int], name: str = "qvit") -> Recipe:
    bits = {"qkv": ",".join(map(str, qkv)), "proj": ",".join(map(str, proj))}
    recipe = Recipe.preset(name, weight_bits=4, activation_bits=4).without_images()
    return recipe.override([f"layers.blocks.0.attn.{key}=W{value}" for key, value in bits.items()])


def any_codes(model: ViT) -> None:
    """Codes and multipliers anywhere within what bits allow, those of both ends among them."""
    for dense in (m for m in model.modules() if isinstance(m, IntegerDense)):
        weight, multiplier = dense.scheme.weight, dense.weight_multiplier
        shape = dense.out_features, dense.in_features
        parts = split_slices(torch.empty(shape, dtype=torch.int8), weight)
        codes = [
            torch.randint(
                code_range(bits)[0], code_range(bits)[1] + 1, part.shape, dtype=torch.int8
            )
            for part, bits in zip(parts, weight.slices, strict=True)
        ]
        if multiplier is not None:
            signs = torch.randint(0, 2, multiplier.shape, dtype=torch.int8) * 2 - 1
            most = [
                1 if size == 0 else largest_multiplier(bits)
                for bits, size in zip(weight.slices, multiplier_bits(weight), strict=True)
            ]
            sizes = [
                torch.randint(1, high + 1, part.shape, dtype=torch.int8)
                for part, high in zip(split_slices(signs, weight), most, strict=True)
            ]
            multiplier = join_slices(sizes, weight) * signs
            if 0 in multiplier_bits(weight):  # rows without groups, beside others
                multiplier = multiplier.abs()
        dense.store(join_slices(codes, weight), multiplier)


def in_bytes(count: int, bits: list[int]) -> int:
    return sum(math.ceil(count / len(bits) * width / 8) for width in bits)


VIT = float_vit("odd widths", embed_dim=60, num_heads=3, depth=1)  # heads of 20
BITS = st.integers(2, 8)


@given(
    qkv=st.lists(BITS, min_size=9, max_size=9),
    proj=st.lists(BITS, min_size=3, max_size=3),
    preset=st.sampled_from(["qvit", "plain"]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=25)
def test_heads_of_any_bits_come_back_in_the_bytes_that_they_need(qkv, proj, preset, seed):
    torch.manual_seed(seed)
    recipe = with_heads(qkv, proj, preset)
    model, found = emptied(VIT, recipe), emptied(VIT, recipe)
    any_codes(model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        storage.save_weights(model, folder)
        storage.check_header(folder, found)
        storage.load_weights(folder, found)
        assert (folder / storage.WEIGHTS).stat().st_size == storage.file_bytes(model)
        stored = {k: len(v) for k, v in load_file(folder / storage.WEIGHTS).items()}
    expected = model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found.state_dict().items())
    assert stored["blocks.0.attn.qkv.weight_packed"] == in_bytes(180 * 60, qkv)
    assert stored["blocks.0.attn.proj.weight_packed"] == in_bytes(60 * 60, proj)


def test_multipliers_that_the_bits_of_their_head_do_not_allow_are_refused(tmp_path):
    recipe = with_heads([4] * 9, [4, 4, 2])
    model = emptied(VIT, recipe)
    any_codes(model)
    proj = model.get_submodule("blocks.0.attn.proj")
    assert isinstance(proj, IntegerDense)
    assert proj.weight_multiplier is not None
    groups = proj.weight_multiplier.shape[1] // 3
    proj.weight_multiplier[:, groups:] = 15
    storage.save_weights(model, tmp_path)
    storage.load_weights(tmp_path, emptied(VIT, recipe))
    proj.weight_multiplier[0, -1] = -64
    storage.save_weights(model, tmp_path)
    with pytest.raises(InputError, match=r"blocks\.0\.attn\.proj has multipliers beyond 1 to 63"):
        storage.load_weights(tmp_path, emptied(VIT, recipe))


def test_a_code_without_a_negative_is_refused(tmp_path):
    recipe = Recipe.preset("plain", weight_bits=8, activation_bits=8)
    model = emptied(VIT, recipe)
    any_codes(model)
    storage.save_weights(model, tmp_path)
    storage.load_weights(tmp_path, emptied(VIT, recipe))
    fc1 = model.get_submodule("blocks.0.mlp.fc1")
    assert isinstance(fc1, IntegerDense)
    fc1.codes[3, 5] = -128
    storage.save_weights(model, tmp_path)
    with pytest.raises(InputError, match=r"blocks\.0\.mlp\.fc1 has codes beyond 127"):
        storage.load_weights(tmp_path, emptied(VIT, recipe))
