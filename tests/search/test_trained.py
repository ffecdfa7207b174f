"""Bits that are trained with the weights: gradients of the penalty, the schedule, budgets, and what is trained on."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from qvit import zoo
from qvit.demo.scenes import render
from qvit.distillation.divergence import soft_divergence
from qvit.distillation.heads import head_distance
from qvit.errors import UsageError
from qvit.models.floating import Float
from qvit.models.timm_import import read_model
from qvit.models.watching import WatchedFloat, watch
from qvit.recipe import Recipe
from qvit.search import trained
from qvit.search.allocation import Space
from qvit.search.budgets import Budget, fit, hold
from qvit.search.costs import bitops_table, size_table
from qvit.search.descent import Searcher, Settings
from qvit.search.sample import Sample, draw_sample
from qvit.search.start import begin, make_cost_table, preset_starts
from qvit.search.trained import Training, press_as_published, train_bits
from qvit.synthesis.leaves import draw_pictures
from tests.search.test_descent import linear_table
from tests.support import float_vit, images_for

RECIPE = Recipe.preset("qvit", weight_bits=4, activation_bits=4).without_images().with_open_ends()
VIT = float_vit()
SPACE = Space.of(VIT.config, RECIPE)
SIZE, BITOPS = size_table(VIT.config, SPACE), bitops_table(VIT.config, SPACE)
FEW = Training(steps=10, batch=4, penalty=0.1)


def budgets_of(bits):
    return [Budget(table, table.total(SPACE.uniform(bits))) for table in (SIZE, BITOPS)]


def sample(labels=None):
    torch.manual_seed(0)
    return Sample(images_for(VIT, 8), labels)


def train(budgets=None, training=FEW, seed=0, sample=sample()):  # noqa: B008
    return train_bits(VIT, SPACE, sample, budgets or budgets_of(4), training, seed=seed)


def test_the_penalty_is_the_published_one():
    """lam max(0, BitOps / 10^9 - budget)^2, of a budget of 21.455 G, by differences."""
    table = linear_table("bitops", [0.7e9, 1.3e9, 2.1e9])
    budget = Budget(table, 21.455e9)
    bits = torch.tensor([5.0, 6.0, 7.0], dtype=torch.float64)

    def penalty(bits):
        prices = torch.tensor([0.7, 1.3, 2.1], dtype=torch.float64)
        return 0.1 * float((prices * bits).sum() - 21.455) ** 2

    expected = [
        (penalty(bits + step) - penalty(bits - step)) / 2e-3
        for step in 1e-3 * torch.eye(3, dtype=torch.float64)
    ]
    assert press_as_published(bits, [budget], 0.1).tolist() == pytest.approx(expected)
    assert press_as_published(bits, [Budget(table, 1e12)], 0.1).tolist() == [0.0, 0.0, 0.0]


def test_a_share_too_much_of_any_budget_presses_alike():
    bits = SPACE.uniform(5)
    found = [
        press_as_published(bits, [Budget(table, table.total(bits) / 1.1)], 0.1) @ bits.double()
        for table in (
            linear_table("size", [1.0] * len(bits)),
            linear_table("size", [1e9] * len(bits)),
        )
    ]
    assert found[0] == pytest.approx(float(found[1]))


def test_widths_begin_one_above_and_stay_in_the_last_tenth(monkeypatch):
    begun = trained._begin(VIT, SPACE, budgets_of(4))
    assert begun.bits.tolist() == [5.0] * len(SPACE.choices)
    moves = []
    monkeypatch.setattr(trained._Widths, "move", lambda self, bits, share: moves.append(share))
    assert train().tolist() == [5.0] * len(SPACE.choices)
    assert len(moves) == 9
    assert moves == sorted(moves, reverse=True)
    assert moves[0] == 1


@pytest.mark.parametrize("penalty", [0.1, None], ids=["penalty", "hdx"])
def test_budgets_are_met(penalty):
    budgets = budgets_of(4)
    found = fit(train(budgets, replace(FEW, penalty=penalty), sample=sample()), budgets)
    assert found.dtype == torch.int64
    assert hold(budgets, found)
    assert len(found.unique()) > 1


@pytest.mark.parametrize("penalty", [0.1, None], ids=["penalty", "hdx"])
def test_budgets_pull_costs_down(penalty):
    tight, loose = [Budget(BITOPS, BITOPS.total(SPACE.uniform(bits))) for bits in (4, 5)]
    start = BITOPS.total(SPACE.uniform(5))
    training = replace(FEW, penalty=penalty, growth=1.0)
    costs = [
        BITOPS.total(train([budget], training).round().long())
        for budget in (tight, replace(loose, limit=10 * start))
    ]
    assert costs[0] < 0.98 * start
    assert costs[0] < 0.98 * costs[1]


def test_it_repeats_by_its_seed_and_leaves_the_float_model_alone():
    before = {name: value.clone() for name, value in VIT.state_dict().items()}
    losses = []
    first = train_bits(VIT, SPACE, sample(), budgets_of(4), FEW, seed=1, note=losses.append)
    assert len(losses) == FEW.steps
    assert torch.equal(first, train(seed=1))
    assert not torch.equal(first, train(seed=2))
    assert all(torch.equal(value, before[name]) for name, value in VIT.state_dict().items())


def test_labels_take_the_place_of_the_float_model():
    student = trained._begin(VIT, SPACE, budgets_of(4))
    student.take(trained.plan_scheme(VIT.config, SPACE.recipe_of(student.whole_bits())))
    labels = torch.arange(8) % VIT.config.num_classes
    known, places = sample(labels), [3, 1, 6]
    with torch.no_grad():
        seen = student(known.images[places])
        theirs = watch(VIT, known.images[places], WatchedFloat())
        assert torch.equal(theirs.logits, VIT(known.images[places], Float()))
        teacher = trained.FloatTeacher(VIT)
        found = trained._loss(teacher, student, known, places, FEW)
        assert torch.equal(found, F.cross_entropy(seen.logits, labels[places]))
        found = trained._loss(teacher, student, sample(), places, replace(FEW, heads=3.0))
        expected = soft_divergence(theirs.logits, seen.logits) + 3 * head_distance(theirs, seen)
    assert float(found) == pytest.approx(float(expected))


def test_weights_and_scales_learn():
    """At widths that stay, the loss falls."""
    losses = []
    training = replace(FEW, steps=12, batch=8, frozen=1.0, rate=1e-3)
    train_bits(VIT, SPACE, sample(), budgets_of(2), training, seed=0, note=losses.append)
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


@pytest.mark.slow
def test_on_a_real_model_bits_go_where_they_matter():
    """KL of demo_vit at the size and BitOps of W3A3, on pictures of what it was made for. On leaves, of which it is
    trained, its bits need not be better.
    """
    source = zoo.resolve("demo_vit")
    vit = read_model(zoo.load(source), source.pretrained_cfg)
    preset = Recipe.preset("qvit", weight_bits=3, activation_bits=3).with_open_ends()
    space = Space.of(vit.config, preset)
    limits = {
        name: make_cost_table(name, vit.config, space, None).whole(space.usual(3))
        for name in ("size", "bitops")
    }
    space, budgets = begin(vit.config, preset_starts("qvit", limits), limits)
    leaves = draw_pictures(vit.config, 128, torch.Generator().manual_seed(0))
    bits = fit(train_bits(vit, space, Sample(leaves), budgets, Training(), seed=0), budgets)
    assert hold(budgets, bits)
    pictures = torch.stack([torch.from_numpy(render(7, i).image) for i in range(100)])
    images = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
    searcher = Searcher(vit, space, images, seed=0, settings=Settings())
    assert searcher.measure(bits) < 0.8 * searcher.measure(space.usual(3))


def test_heads_have_widths_of_their_own():
    space = Space.of(VIT.config, RECIPE, heads=True)
    costs = size_table(VIT.config, space), bitops_table(VIT.config, space)
    budgets = [Budget(table, table.total(space.uniform(4))) for table in costs]
    bits = train_bits(VIT, space, sample(), budgets, FEW, seed=0)
    heads = [choice.head is not None for choice in space.choices]
    assert len(bits[torch.tensor(heads)].unique()) > 2
    assert hold(budgets, fit(bits, budgets))


def test_labels_need_classes():
    recipe = RECIPE.override(["synthesis=folder", "synthesis.data=nowhere", "synthesis.images=4"])
    config = replace(VIT.config, num_classes=0)
    with pytest.raises(UsageError, match="no classes"):
        draw_sample(config, recipe, {})
