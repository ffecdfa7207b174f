"""The frontier of a small model."""

import pytest

from qvit.search import frontier as frontier_of
from qvit.search.allocation import Space
from qvit.search.descent import Searcher, Settings
from qvit.search.frontier import Frontier, estimate_seconds
from qvit.search.start import Start, begin, preset_starts, starts_by_cost
from tests.search.test_costs import BITOPS, SIZE, SPACE, VIT
from tests.support import images_for

IMAGES = images_for(VIT, 8)


@pytest.fixture(autouse=True, scope="module")
def costs():
    """Latency aside, which has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frontier_of, "COSTS", ("size", "bitops"))
        yield


def search(space: Space) -> Searcher:
    return Searcher(VIT, space, IMAGES, seed=0, settings=Settings(steps=60))


@pytest.fixture(scope="module")
def frontier(costs):
    start = Start(VIT.config, SPACE)
    return Frontier({"size": [start], "bitops": [start]}, search, lambda _: None)


def test_more_cost_is_nearer_the_float_model(frontier):
    points = frontier.points("size", 4)
    sizes = [point.costs["size"] for point in points]
    assert sizes == sorted(sizes)
    assert sizes[0] == SIZE.smallest
    assert sizes[-1] == SIZE.largest
    assert all(point.costs["size"] <= point.limit for point in points)
    assert points[0].divergence > 5 * points[-1].divergence
    assert all(point.costs["bitops"] == BITOPS.total(point.bits) for point in points)
    assert points[-1].describe()["layers"]["blocks.0.mlp.fc1"].startswith("W8")
    assert points[-1].recipe == SPACE.recipe_of(points[-1].bits)
    assert frontier.images == 8


def test_the_cheapest_keeps_to_the_drop_and_costs_no_more_than_the_points(frontier):
    points = frontier.points("size", 4)
    most = 3 * points[1].divergence
    best = frontier.cheapest("size", most, points)
    good = [point.costs["size"] for point in points if point.divergence <= most]
    assert best.divergence <= most
    assert best.costs["size"] < min(good)
    assert frontier.cheapest("size", points[-1].divergence / 2, points[-1:]) is None


@pytest.mark.parametrize(("cost", "grids"), [("size", 1), ("bitops", 2)])
def test_a_point_is_no_worse_than_what_auto_finds_under_its_limit(cost, grids):
    recipes = {
        name: [recipe.without_images() for recipe in preset_starts("qvit", [name])]
        for name in ("size", "bitops")
    }
    starts = starts_by_cost(VIT.config, recipes)
    points = Frontier(starts, search, lambda _: None).points(cost, 9)
    largest = {point.start: point for point in points}  # on each of the grids
    assert len(largest) == grids
    for point in (points[0], *largest.values()):
        space, budgets = begin(VIT.config, recipes[cost], {cost: point.limit})
        assert point.recipe == space.recipe_of(point.bits)  # with the grids that auto has
        assert point.divergence <= search(space).search(budgets).divergence
    if cost == "bitops":
        few = largest[max(largest)]
        assert (few.recipe.activations.bits, few.recipe.activations.prefix_bits) == (3, 8)
        alone = Start(VIT.config, SPACE).budgets({cost: few.limit})
        assert few.divergence < 0.9 * search(SPACE).search(alone).divergence


def test_costs_that_have_the_same_recipe_share_a_start():
    """A named one is searched with open activations for size, too; where only size has it, they are settled."""
    few, many = (preset_starts("qvit", [name])[0] for name in ("bitops", "size"))
    found = starts_by_cost(VIT.config, {"size": [few], "bitops": [few]})
    assert found["size"][0] is found["bitops"][0]
    assert {choice.kind for choice in found["size"][0].space.choices} == {"W", "A"}
    found = starts_by_cost(VIT.config, {"size": [many], "bitops": [few]})
    assert {choice.kind for choice in found["size"][0].space.choices} == {"W"}
    assert {choice.kind for choice in found["bitops"][0].space.choices} == {"W", "A"}


def test_more_choices_and_more_measurements_take_longer():
    least = estimate_seconds(VIT.config, 32, 3)
    assert 0 < least < estimate_seconds(VIT.config, 64, 3)
    assert least < estimate_seconds(VIT.config, 32, 4)
    assert least < estimate_seconds(VIT.config, 32, 3, recipes=2)
