"""The frontier of a small model."""

import pytest
import torch

from qvit.search.descent import Searcher, Settings
from qvit.search.frontier import Frontier, estimate_seconds
from tests.search.test_costs import BITOPS, SIZE, SPACE, VIT
from tests.support import images_for


@pytest.fixture(scope="module")
def frontier():
    torch.manual_seed(0)
    settings = Settings(steps=60)
    searcher = Searcher(VIT, SPACE, images_for(VIT, 8), seed=0, settings=settings)
    return Frontier(searcher, [SIZE, BITOPS], lambda _: None)


def test_more_cost_is_nearer_the_float_model(frontier):
    points = frontier.points(SIZE, 4)
    sizes = [point.costs["size"] for point in points]
    assert sizes == sorted(sizes)
    assert sizes[0] == SIZE.smallest
    assert sizes[-1] == SIZE.largest
    assert points[0].divergence > 5 * points[-1].divergence
    assert all(point.costs["bitops"] == BITOPS.total(point.bits) for point in points)
    described = points[-1].describe(SPACE)
    assert described["layers"]["blocks.0.mlp.fc1"].startswith("W8")


def test_the_cheapest_keeps_to_the_drop_and_costs_no_more_than_the_points(frontier):
    points = frontier.points(SIZE, 4)
    most = 3 * points[1].divergence
    best = frontier.cheapest(SIZE, most, points)
    good = [point.costs["size"] for point in points if point.divergence <= most]
    assert best.divergence <= most
    assert best.costs["size"] < min(good)
    assert frontier.cheapest(SIZE, points[-1].divergence / 2, points[-1:]) is None


def test_more_choices_and_more_measurements_take_longer():
    least = estimate_seconds(VIT.config, 32, 3)
    assert 0 < least < estimate_seconds(VIT.config, 64, 3)
    assert least < estimate_seconds(VIT.config, 32, 4)
