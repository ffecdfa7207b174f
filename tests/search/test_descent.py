"""The search on a small model of which half does not matter, and on losses whose best allocation is known."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from benchmarks.searching.rivals import penalized
from qvit.deployment import cpu_preparation
from qvit.errors import UsageError
from qvit.recipe import Recipe
from qvit.search.allocation import Space
from qvit.search.answers import Answers
from qvit.search.budgets import Budget, fit, hold
from qvit.search.costs import CostTable, bitops_table, size_table
from qvit.search.descent import Searcher, Settings, descend
from qvit.search.latency import Place, latency_table
from tests.support import float_vit, images_for

RECIPE = Recipe.preset("qvit", weight_bits=4, activation_bits=4).without_images().with_open_ends()
FEW = Settings(steps=300, batch=8)


@pytest.fixture(scope="module")
def searched():
    """A model whose first block hardly adds to the residual stream, what is to be found, and its tables."""
    vit = float_vit()
    with torch.no_grad():
        for dense in (vit.blocks[0].attn.proj, vit.blocks[0].mlp.fc2):
            dense.weight.mul_(1e-2)
            dense.bias.mul_(1e-2)
    torch.manual_seed(0)
    space = Space.of(vit.config, RECIPE)
    searcher = Searcher(vit, space, images_for(vit, 24), seed=0, settings=FEW)
    return space, searcher, size_table(vit.config, space), bitops_table(vit.config, space)


def test_bits_go_where_they_matter(searched):
    space, searcher, size, bitops = searched
    budgets = [Budget(table, table.total(space.uniform(4))) for table in (size, bitops)]
    found = searcher.search(budgets)
    assert hold(budgets, found.bits)
    assert found.divergence == searcher.measure(found.bits) < 0.4 * found.uniform
    assert found.uniform == searcher.measure(space.uniform(4))
    first, second = (
        [float(b) for c, b in zip(space.choices, found.bits, strict=True) if f".{i}." in c.layer]
        for i in (0, 1)
    )
    assert sum(second) / len(second) > sum(first) / len(first) + 1


def test_what_a_choice_costs_alone_is_what_it_was_said_to(searched):
    """By half or twice: the squared error of logits in place of KL, and no more than four times the curvature."""
    space, searcher, _, _ = searched
    told, measured = [], []
    for place in range(len(space.choices)):
        bits = space.uniform(8)
        bits[place] = 3
        told.append(float(searcher.losses[place, 1]))
        measured.append(searcher.measure(bits))
    dear = [i for i, value in enumerate(measured) if value > 2e-3]
    assert len(dear) >= 8
    assert all(0.4 < told[i] / measured[i] < 2.5 for i in dear)
    cheap = [i for i, value in enumerate(measured) if value < 3e-4]
    assert len(cheap) >= 6
    assert max(told[i] for i in cheap) < min(told[i] for i in dear)


@pytest.mark.parametrize("share", [0.05, 0.4])
def test_three_budgets_hold_at_once(searched, share):
    """Size, BitOps, and the modelled latency of a card, whose whole is not the sum of its layers."""
    pytest.importorskip("triton")
    space, searcher, size, bitops = searched
    latency = latency_table(float_vit().config, space, Place("nvidia-l4", batch=4096))
    tables = size, bitops, latency
    limits = [t.smallest + share * (t.largest - t.smallest) for t in tables]
    budgets = [Budget(table, limit) for table, limit in zip(tables, limits, strict=True)]
    found = searcher.find(budgets)
    wanted = torch.linspace(2, 8, len(found), dtype=torch.float64)
    for bits in (found, fit(wanted, budgets)):
        assert all(t.whole(bits) <= limit for t, limit in zip(tables, limits, strict=True))
    assert max(t.whole(found) / limit for t, limit in zip(tables, limits, strict=True)) > 0.98


def test_an_impossible_budget_is_refused_before_anything_is_computed(searched, monkeypatch):
    _, searcher, size, _ = searched
    monkeypatch.setattr(searcher, "_answers", lambda *_: pytest.fail("computed something first"))
    with pytest.raises(UsageError, match="cannot be met: the smallest"):
        searcher.search([Budget(size, 1000)])


def test_budgets_that_oppose_each_other_are_searched_all_the_same():
    """More bits make one dearer and the other cheaper, in the same proportions: no step descends on both."""
    rising = linear_table("size", [1.0, 2.0, 3.0])
    falling = replace(rising, name="latency", costs=30 - rising.costs)
    budgets = [Budget(rising, 24.0), Budget(falling, 68.0)]
    losses = 4.0 ** -torch.arange(7, dtype=torch.float64).expand(3, 7)
    start = torch.tensor([2.0, 8.0, 8.0], dtype=torch.float64)
    bits = fit(descend(losses, start, budgets, Settings()), budgets)
    assert hold(budgets, bits)


def linear_table(name: str, prices: list[float]) -> CostTable:
    """A choice's cost is its price for every bit."""
    bits = torch.arange(2, 9, dtype=torch.float64)
    costs = torch.tensor(prices).double().view(-1, 1, 1) * bits.view(1, 7, 1).expand(-1, -1, 7)
    places = torch.tensor([[i, len(prices)] for i in range(len(prices))])
    return CostTable(name, "B", 0.0, len(prices), places, costs)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "rule", [lambda budgets: None, lambda budgets: penalized(budgets, 10.0)], ids=["hdx", "penalty"]
)
def test_exhaustive_search_finds_little_better(count, rule):
    """Losses that fall fourfold a bit, four choices, one and two budgets."""
    generator = torch.Generator().manual_seed(count)
    for _ in range(3):
        scales = 10 ** (2 * torch.rand(4, generator=generator, dtype=torch.float64))
        losses = scales.unsqueeze(1) * 0.25 ** torch.arange(7, dtype=torch.float64)
        budgets = []
        for i in range(count):
            prices = (1 + 3 * torch.rand(4, generator=generator)).tolist()
            share = float(torch.rand(1, generator=generator))
            budgets.append(Budget(linear_table(f"cost{i}", prices), sum(prices) * (3 + 3 * share)))
        start = torch.full((4,), 3.0, dtype=torch.float64)
        bits = fit(descend(losses, start, budgets, Settings(), rule(budgets)), budgets)

        def loss(bits: torch.Tensor, losses: torch.Tensor = losses) -> float:
            return float(losses.gather(1, (bits - 2).unsqueeze(1)).sum())

        every = (torch.tensor(b) for b in product(range(2, 9), repeat=4))
        best = min(loss(b) for b in every if hold(budgets, b))
        assert hold(budgets, bits)
        assert loss(bits) < 1.6 * best  # a bit is four times


def test_bits_of_heads_go_where_they_matter():
    """A model of which one head of two does not matter, under the size of four bits everywhere."""
    vit = float_vit(depth=1)
    with torch.no_grad():
        vit.blocks[0].attn.proj.weight[:, 32:].mul_(1e-2)  # what the second puts out
    torch.manual_seed(0)
    space = Space.of(vit.config, RECIPE, activations=False, heads=True)
    searcher = Searcher(vit, space, images_for(vit, 16), seed=0, settings=FEW)
    size = size_table(vit.config, space)
    budgets = [Budget(size, size.whole(space.uniform(4)))]
    found = searcher.search(budgets)
    assert size.whole(found.bits) <= budgets[0].limit
    bits = {choice.key: int(b) for choice, b in zip(space.choices, found.bits, strict=True)}
    value = "blocks.0.attn.qkv", "W"
    assert bits[*value, 5] < bits[*value, 4]  # V of the second head, and of the first
    losses = dict(zip((c.key for c in space.choices), searcher.losses[:, 2].tolist(), strict=True))
    assert losses[*value, 5] < 0.01 * losses[*value, 4]
    assert losses["blocks.0.attn.proj", "W", 1] < 0.01 * losses["blocks.0.attn.proj", "W", 0]
    assert found.divergence == searcher.measure(found.bits) <= found.uniform


def test_losses_are_the_same_whatever_was_measured_before(searched):
    space, _, _, _ = searched
    vit = float_vit()
    images, found = images_for(vit, 16), []
    for bits in (None, 2):
        searcher = Searcher(vit, space, images, seed=0, settings=FEW)
        if bits is not None:
            searcher.measure(space.uniform(bits))
        found.append(searcher.losses)
    assert torch.equal(*found)


def test_where_answers_take_long_few_images_are_asked(searched, monkeypatch):
    space, _, _, _ = searched
    vit = float_vit()
    monkeypatch.setattr(cpu_preparation, "prepare", lambda vit: "no compiler was found")
    searcher = Searcher(vit, space, images_for(vit, 24), seed=0, settings=FEW)
    asked = []
    answers = Answers.__call__
    monkeypatch.setattr(
        Answers,
        "__call__",
        lambda self, images, recipe: asked.append(len(images)) or answers(self, images, recipe),
    )
    searcher.measure(space.uniform(4))
    assert asked == [FEW.curved] == [searcher.asked]
    assert searcher.losses.shape == (len(space.choices), 7)
    assert set(asked[1:]) == {FEW.few}
