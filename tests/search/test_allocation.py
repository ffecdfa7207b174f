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
