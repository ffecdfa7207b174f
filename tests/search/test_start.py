"""What a search begins with: never less than the uniform preset of the same cost."""

import pytest
import torch

from qvit.errors import UsageError
from qvit.models.floating import Float
from qvit.models.plan import plan_scheme
from qvit.models.simulated import Simulated
from qvit.models.switching import SwitchableModel
from qvit.recipe import Recipe
from qvit.search.bitops import count_bitops
from qvit.search.descent import Searcher, Settings
from qvit.search.start import begin, preset_starts
from tests.executions import both
from tests.search.test_costs import VIT
from tests.support import images_for

BOTH = ("size", "bitops")


def costs_of(bits):
    """Of the uniform preset: bytes as they are stored, and BitOps."""
    recipe = Recipe.preset("qvit", weight_bits=bits, activation_bits=bits)
    space, budgets = begin(VIT.config, [recipe.with_open_ends()], dict.fromkeys(BOTH, 1e15))
    return {b.table.name: b.table.whole(space.usual(bits)) for b in budgets}, recipe


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_the_usual_allocation_is_the_presets(bits):
    costs, recipe = costs_of(bits)
    scheme = plan_scheme(VIT.config, recipe)
    assert costs["bitops"] == sum(count_bitops(VIT.config, scheme).values())
    space = preset_starts("qvit", BOTH)[0 if bits > 3 else 1]
    found = begin(VIT.config, [space], dict.fromkeys(BOTH, 1e15))[0]
    assert plan_scheme(VIT.config, found.recipe_of(found.usual(bits))).linears == scheme.linears


@pytest.mark.parametrize(("bits", "norm_group", "prefix"), [(4, 0, 0), (3, 64, 8), (2, 64, 8)])
def test_a_search_begins_with_the_grids_of_the_preset_that_fits(bits, norm_group, prefix):
    limits, _ = costs_of(bits)
    found = begin(VIT.config, preset_starts("qvit", limits), limits)[0].recipe.activations
    assert (found.norm_group, found.prefix_bits) == (norm_group, prefix)


def test_a_byte_less_than_four_bits_take_is_a_budget_for_three():
    limits, _ = costs_of(4)
    recipes = preset_starts("qvit", limits)
    space, _ = begin(VIT.config, recipes, limits | {"size": limits["size"] - 1})
    assert space.recipe is recipes[1]


def test_size_alone_leaves_activations_at_eight_bits_and_has_one_grid():
    (recipe,) = preset_starts("qvit", ["size"])
    assert recipe.activations.bits == 8
    assert recipe == Recipe.preset("qvit", weight_bits=4, activation_bits=8).with_open_ends()
    three = Recipe.preset("qvit", weight_bits=3, activation_bits=8).with_open_ends()
    assert recipe.override(["weights.bits=3"]) == three


def test_what_only_coarser_grids_can_meet_is_met_with_these():
    recipes = preset_starts("qvit", ["bitops"])
    smallest = [begin(VIT.config, [r], {"bitops": 1e15})[1][0].table.smallest for r in recipes]
    assert smallest[0] < smallest[1]  # the class token's 8 bits are the finer ones' alone
    space, budgets = begin(VIT.config, recipes, {"bitops": sum(smallest) / 2})
    assert space.recipe is recipes[0]
    assert budgets[0].table.smallest == smallest[0]
    with pytest.raises(
        UsageError, match=f"the smallest that is possible is {smallest[0]:,.0f} BitOps"
    ):
        begin(VIT.config, recipes, {"bitops": smallest[0] - 1})


@pytest.mark.parametrize("bits", [3, 4])
def test_what_is_found_is_no_worse_than_the_preset(bits, monkeypatch):
    """KL of the allocation that a preset has, of the same size and BitOps, weights at their nearest codes."""
    # Every step is tried, as for what is written: one in four is up to a quarter off in so small a model.
    monkeypatch.setitem(SwitchableModel.__init__.__kwdefaults__, "stride", 1)
    limits, preset = costs_of(bits)
    recipes = [recipe.without_images() for recipe in preset_starts("qvit", limits)]
    space, budgets = begin(VIT.config, recipes, limits)
    images = images_for(VIT, 16)
    searcher = Searcher(VIT, space, images, seed=0, settings=Settings(steps=100))
    found = searcher.search(budgets)
    assert found.divergence <= found.uniform
    assert found.uniform == searcher.measure(space.usual(bits))
    simulated, _ = both(VIT, preset.without_images())
    with torch.no_grad():
        expected, told = VIT(images, Float()), simulated(images, Simulated())
    expected, told = (x.double().log_softmax(-1) for x in (expected, told))
    divergence = float((expected.exp() * (expected - told)).sum(-1).mean())
    assert found.uniform == pytest.approx(divergence, rel=1e-3)
