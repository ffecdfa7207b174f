"""Allocations beside what a recipe says of the same layers."""

from dataclasses import replace

import pytest

from qvit.errors import UsageError
from qvit.models.plan import plan_scheme
from qvit.search.allocation import Choice, Space
from tests.search.test_costs import RECIPE, VIT

FC2 = "blocks.0.mlp.fc2"


def bits_of(layers, name, *, found=3, **open_ones):
    """Weight and input bits of a layer where everything that `layers` leave open has as many as were found."""
    space = Space.of(VIT.config, replace(RECIPE, layers=layers), **open_ones)
    linear = plan_scheme(VIT.config, space.recipe_of(space.uniform(found))).linears[name]
    return linear.weight.bits, linear.input.bits


@pytest.mark.parametrize("name", ["head", FC2])
@pytest.mark.parametrize(
    "pattern", [lambda name: name, lambda name: name.replace("c", "*").replace("head", "h*")]
)
def test_bits_that_a_recipe_gives_stay_beside_those_that_are_found(name, pattern):
    assert bits_of({pattern(name): "W8"}, name) == (8, 3)
    assert bits_of({pattern(name): "A5"}, name) == (3, 5)
    assert bits_of({pattern(name): "W7A5"}, name) == (7, 5)


def test_bits_of_activations_stay_where_only_weights_are_sought():
    assert bits_of({FC2: "A5"}, FC2, activations=False) == (3, 5)
    assert bits_of({}, FC2, activations=False) == (3, RECIPE.activations.bits)


def test_of_a_name_and_a_pattern_behind_it_the_pattern_has_its_way():
    assert bits_of({FC2: "W8A6", "blocks.*.mlp.fc2": "W5"}, FC2) == (5, 6)
    assert bits_of({FC2: "W8", "blocks.*.mlp.fc2": "W5"}, FC2) == (5, 3)


def test_nothing_to_find_is_refused():
    everything = {"blocks.*.*.*": "W4", "head": "W4", "patch_embed.proj": "W4"}
    recipe = replace(RECIPE, layers=everything)
    with pytest.raises(UsageError, match=r"no bits are left to find: .* of all weights;"):
        Space.of(VIT.config, recipe, activations=False)
    assert {choice.kind for choice in Space.of(VIT.config, recipe).choices} == {"A"}
    settled = replace(recipe, layers=everything | {"blocks.*.*.*": "W4A4", "blocks.*.attn": "A4"})
    assert Space.of(VIT.config, settled).choices == (Choice("head", "A"),)
    with pytest.raises(UsageError, match="of all weights and activations"):
        Space.of(VIT.config, replace(settled, layers=settled.layers | {"head": "W4A4"}))


def test_bits_of_heads_that_a_recipe_gives_stay():
    proj = "blocks.0.attn.proj"
    space = Space.of(VIT.config, replace(RECIPE, layers={proj: "W4,2"}))
    assert [choice.kind for choice in space.choices if choice.layer == proj] == ["A"]
    assert space.layers(space.uniform(3))[proj] == "W4,2A3"
    linear = plan_scheme(VIT.config, space.recipe_of(space.uniform(3))).linears[proj]
    assert (linear.weight.columns, linear.input.bits) == ((4, 2), 3)


def test_heads_are_choices_of_their_own():
    """Of two heads: six slices of qkv, two of proj, and the same recipe where all are alike."""
    space = Space.of(VIT.config, RECIPE, heads=True)
    names = [choice.layer for choice in space.choices if choice.head is not None]
    assert names == [f"blocks.{i}.attn.{n}" for i in (0, 1) for n in ["qkv"] * 6 + ["proj"] * 2]
    plain = Space.of(VIT.config, RECIPE)
    assert not plain.heads
    assert space.recipe_of(space.uniform(3)) == plain.recipe_of(plain.uniform(3))
    bits = [2 + place % 7 for place in range(len(space.choices))]
    found = plan_scheme(VIT.config, space.recipe_of(bits))
    for layer in {choice.layer for choice in space.choices}:
        wanted = [
            b for c, b in zip(space.choices, bits, strict=True) if (c.layer, c.kind) == (layer, "W")
        ]
        if wanted:
            assert list(found.linears[layer].weight.slices) == wanted
    assert found.linears["blocks.0.attn.qkv"].weight.rows
    assert found.linears["blocks.0.attn.proj"].weight.columns


def test_heads_that_a_recipe_settles_are_no_choices():
    space = Space.of(VIT.config, replace(RECIPE, layers={"blocks.*.attn.qkv": "W4"}), heads=True)
    assert {c.layer for c in space.choices if c.head is not None} == {
        "blocks.0.attn.proj",
        "blocks.1.attn.proj",
    }


def test_the_widest_head_decides_for_all():
    space = Space.of(VIT.config, RECIPE, heads=True)
    bits = space.uniform(4)
    place = next(i for i, choice in enumerate(space.choices) if choice.head == 1)
    bits[place] = 6
    qkv = "blocks.0.attn.qkv"
    expected = [6 if (c.layer, c.kind) == (qkv, "W") else 4 for c in space.choices]
    assert space.widest(bits) == expected
