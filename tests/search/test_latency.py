"""Latency tables: modelled for cards, and measured here, once."""

import json
import math
from dataclasses import replace

import pytest
import torch

from qvit import machine, zoo
from qvit.deployment.quantvit import QuantViT
from qvit.errors import UsageError
from qvit.models.plan import plan_scheme
from qvit.models.timm_import import read_shape
from qvit.recipe import Recipe
from qvit.search import stopwatch
from qvit.search.allocation import Space
from qvit.search.budgets import Budget, check_budgets, first_within, fit, hold
from qvit.search.cards import CARDS, Card, model_seconds
from qvit.search.costs import size_table
from qvit.search.exchange import exchange
from qvit.search.greedy import descend_greedily
from qvit.search.latency import Place, _between_kernels, latency_table, with_kernel
from qvit.search.stopwatch import measure_seconds
from qvit_kernels import backends
from tests.search.test_costs import COUNT, SPACE, VIT

pytest.importorskip("triton")
H200 = Place("nvidia-h200")
L4 = Place("nvidia-l4", batch=4096)  # so many that launches, and not their number, take the time


@pytest.fixture(scope="module")
def modelled():
    return latency_table(VIT.config, SPACE, H200)


def test_widths_without_a_kernel_cost_what_the_next_one_does(modelled):
    assert [with_kernel(pair, SPACE.recipe) for pair in ((2, 3), (4, 5), (5, 2), (8, 8))] == [
        (4, 4),
        (4, 8),
        (8, 8),
        (8, 8),
    ]
    for alike in (([3, 2], [4, 4]), ([2, 6], [4, 8]), ([5, 3], [8, 8])):
        first, second = (
            [weights if c.kind == "W" else inputs for c in SPACE.choices]
            for weights, inputs in alike
        )
        assert modelled.total(first) == modelled.total(second)


def test_the_table_is_the_sum_of_the_launches(modelled):
    bits = SPACE.uniform(8)
    scheme = plan_scheme(VIT.config, SPACE.recipe_of(bits))
    seconds = model_seconds(VIT.config, scheme, 1, CARDS["nvidia-h200"])
    assert modelled.total(bits) == pytest.approx(sum(seconds.values()))
    assert "blocks.0.norm1" in seconds
    assert modelled.origin == "modelled"


@pytest.fixture(scope="module")
def mixed():
    """A table on whose card epilogues show, and random allocations."""
    generator = torch.Generator().manual_seed(0)
    allocations = [torch.randint(2, 9, (COUNT,), generator=generator) for _ in range(10)]
    return latency_table(VIT.config, SPACE, L4), allocations


def seconds_of(bits):
    scheme = plan_scheme(VIT.config, SPACE.recipe_of(bits))
    return sum(model_seconds(VIT.config, scheme, L4.batch, CARDS[L4.name]).values())


def test_mixed_bits_cost_what_the_whole_model_does(mixed):
    table, allocations = mixed
    ratios = [seconds_of(bits) / table.total(bits) for bits in allocations]
    assert min(ratios) < 0.999
    assert max(ratios) > 1.001  # or there is nothing to tell
    for bits in allocations:
        assert table.whole(bits) == pytest.approx(seconds_of(bits), rel=1e-12)


def test_a_limit_holds_on_the_whole_model_where_that_costs_more_than_its_layers(mixed):
    table, allocations = mixed
    by_sums = replace(table, whole_of=None)
    exceeded = 0
    for bits in allocations:
        wanted, limit = bits.double(), min(table.total(bits), table.whole(bits))
        found = fit(wanted, [Budget(table, limit)])
        exceeded += table.whole(fit(wanted, [Budget(by_sums, limit)])) > limit
        assert 0.95 * limit < seconds_of(found) <= limit * (1 + 1e-12)
    assert exceeded >= 3


def test_a_limit_below_what_any_model_takes_is_refused_and_the_smallest_is_met(mixed):
    table, _ = mixed
    found = check_budgets([Budget(table, table.smallest)])
    assert seconds_of(found) <= table.smallest * (1 + 1e-12)
    with pytest.raises(UsageError, match="the smallest that is possible is"):
        check_budgets([Budget(table, table.smallest * 0.9999)])


def test_budgets_that_hold_by_layers_alone_are_refused(mixed):
    """A card on which the whole always takes a tenth more than its layers."""
    table, allocations = mixed
    slower = replace(table, whole_of=lambda bits: 1.1 * table.total(bits))
    limit = 1.05 * table.smallest
    with pytest.raises(UsageError, match="cannot be met"):
        fit(allocations[0].double(), [Budget(slower, limit)])
    found = fit(allocations[0].double(), [Budget(slower, 1.12 * table.smallest)])
    assert 1.1 * table.total(found) <= 1.12 * table.smallest
    size = size_table(VIT.config, SPACE)
    pair = [Budget(size, size.largest), Budget(slower, 1.12 * table.smallest)]
    assert hold(pair, check_budgets(pair))


@pytest.mark.parametrize("share", [0.9, 0.99, 1.02])
def test_what_counts_is_the_whole_and_not_the_sum(mixed, share):
    """A card on which the whole takes less, or more, than its layers."""
    table, allocations = mixed
    other = replace(table, whole_of=lambda bits: share * table.total(bits))
    assert other.smallest == pytest.approx(share * replace(table, whole_of=None).smallest)
    assert other.largest == pytest.approx(share * replace(table, whole_of=None).largest)
    size = size_table(VIT.config, SPACE)
    for budgets in (
        [Budget(other, other.smallest)],
        [Budget(other, other.smallest * 1.001), Budget(size, size.smallest * 1.001)],
        [Budget(other, other.whole(allocations[0]))],
    ):
        losses = 4.0 ** -torch.arange(7, dtype=torch.float64).expand(COUNT, 7)
        fitted, greedy = fit(allocations[0].double(), budgets), descend_greedily(losses, budgets)
        for bits in (check_budgets(budgets), fitted, greedy, exchange(fitted, losses, budgets)):
            assert hold(budgets, bits)
        assert other.whole(fitted) > 0.98 * budgets[0].limit


def test_grids_that_eight_bits_do_not_have_are_in_the_sum():
    """Of the preset for three bits: prefix tokens of eight bits, and groups of channels that share a scale."""
    config, place = read_shape(zoo.resolve("demo_vit")), Place("nvidia-l4", batch=64)
    recipe = Recipe.preset("qvit", weight_bits=3, activation_bits=3).without_images()
    space = Space.of(config, recipe.with_open_ends())
    table = latency_table(config, space, place)

    def told(bits):
        scheme = plan_scheme(config, space.recipe_of(bits))
        return sum(model_seconds(config, scheme, 64, CARDS[place.name]).values())

    six, eight = space.uniform(6), space.uniform(8)
    assert table.total(six) == pytest.approx(told(six))
    assert told(six) > told(eight) >= table.smallest
    few = torch.tensor([8 if choice.kind == "W" else 3 for choice in space.choices])
    assert table.total(few) == pytest.approx(told(few), rel=1e-3)
    assert told(few) > told(eight)
    generator = torch.Generator().manual_seed(0)
    for bits in torch.randint(2, 9, (5, len(space.choices)), generator=generator):
        assert table.whole(bits) == pytest.approx(told(bits), rel=1e-12)


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("width", [3, 4])
def test_bits_that_launch_the_same_are_asked_of_a_card_once(width, heads, monkeypatch):
    """Exchanges ask for the whole of thousands of allocations."""
    recipe = Recipe.preset("qvit", weight_bits=width, activation_bits=width).without_images()
    space = Space.of(VIT.config, recipe.with_open_ends(), heads=heads)
    table = latency_table(VIT.config, space, L4)
    weights = torch.tensor([choice.kind == "W" for choice in space.choices])
    generator = torch.Generator().manual_seed(0)
    for bits in torch.randint(2, 9, (4, len(space.choices)), generator=generator):
        scheme = plan_scheme(VIT.config, space.recipe_of(bits))
        seconds = math.fsum(model_seconds(VIT.config, scheme, L4.batch, CARDS[L4.name]).values())
        assert table.whole(bits) == pytest.approx(seconds, rel=1e-12)
        others = torch.where(bits > 4, 13 - bits, 6 - bits)  # 5 to 8, or 2 to 4, the other way
        with monkeypatch.context() as patch:
            patch.setattr("qvit.search.latency.model_seconds", None)
            assert table.whole(bits.where(~weights, others)) == table.whole(bits)


def within(budgets):
    found = first_within(budgets, [SPACE.uniform(bits) for bits in range(8, 1, -1)])
    assert found is not None
    return int(found[0])


def test_uniform_bits_count_only_where_the_whole_model_holds(mixed):
    table, _ = mixed
    limit = table.total(SPACE.uniform(8))
    assert within([Budget(replace(table, whole_of=None), limit)]) == 8
    slower = replace(table, whole_of=lambda bits: table.total(bits) * (1.1 if max(bits) > 4 else 1))
    assert within([Budget(slower, limit)]) == 4


def test_a_faster_card_is_faster_and_more_images_take_longer():
    scheme = plan_scheme(VIT.config, SPACE.recipe_of(SPACE.uniform(4)))
    slow = Card(90, 4, 1e9, 1024, 1e11)
    once, often = (sum(model_seconds(VIT.config, scheme, b, slow).values()) for b in (1, 64))
    assert once < often
    assert sum(model_seconds(VIT.config, scheme, 64, CARDS["nvidia-h200"]).values()) < often


def test_slopes_lead_over_the_widths_between_kernels():
    costs = torch.arange(1.0, 5).double().view(1, 2, 2)
    widths = [0, 0, 0, 1, 1, 1, 1]
    table = _between_kernels(costs[:, widths][:, :, widths])
    assert table[0, :3, :3].unique().tolist() == [1.0]
    assert table[0, :, 0].tolist() == [1, 1, 1, 1.5, 2, 2.5, 3]
    assert table[0, 0].tolist() == [1, 1, 1, 1.25, 1.5, 1.75, 2]
    assert table[0, -1, -1] == 4


def test_an_unknown_card_is_refused_with_those_that_are_known():
    with pytest.raises(UsageError, match="--on abacus: latency is modelled for nvidia-a100"):
        Place("abacus")


def test_here_is_measured_once(tmp_path, monkeypatch):
    scheme = plan_scheme(VIT.config, SPACE.recipe_of(SPACE.uniform(8)))
    monkeypatch.setattr(stopwatch, "_SECONDS", 0.0)
    first = measure_seconds(VIT.config, scheme, 2, tmp_path)
    assert {"blocks.1.attn", "blocks.0.norm2", "head", "patch_embed.proj"} <= first.keys()
    assert min(first.values()) > 0
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("latency-")
    # blocks are alike, and share an entry
    assert first["blocks.0.mlp.fc1"] == first["blocks.1.mlp.fc1"]
    monkeypatch.setattr(QuantViT, "time_layers", lambda *_: pytest.fail("measured again"))
    assert measure_seconds(VIT.config, scheme, 2, tmp_path) == first
    kept.write_text(json.dumps({"x": "y"}))
    with pytest.raises(pytest.fail.Exception):
        measure_seconds(VIT.config, scheme, 2, tmp_path)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Measures a recipe, and says whether that took a run."""
    runs = []
    monkeypatch.setattr(stopwatch, "_time_layers", lambda *given: runs.append(given) or {})

    def measure(recipe):
        before = len(runs)
        measure_seconds(VIT.config, plan_scheme(VIT.config, recipe), 2, tmp_path)
        return len(runs) > before

    return measure


@pytest.mark.parametrize(
    "change",
    [
        "activations.prefix_bits=8",
        "activations.norm_group=16",
        "attention.softmax_bits=4",
        "attention.bits=4",
        "residual=float16",
    ],
)
def test_what_changes_the_work_of_a_layer_is_measured_anew(change, measured):
    assert measured(SPACE.recipe)
    assert not measured(SPACE.recipe)
    assert measured(SPACE.recipe.override([change]))


def test_times_of_one_backend_are_none_of_another(measured, monkeypatch):
    assert measured(SPACE.recipe)
    with backends.use_backend("reference"):
        assert measured(SPACE.recipe)
    found = None if machine.find_compiler() else "/usr/bin/c++"
    monkeypatch.setattr(machine, "find_compiler", lambda: found)
    assert measured(SPACE.recipe)
    assert not measured(SPACE.recipe)


def test_a_table_of_here(monkeypatch):
    times = dict.fromkeys(VIT.config.linears(), 1.0) | {
        "blocks.0.norm1": 0.5,
        "norm": 2.0,
        "last": 3.0,
    }
    monkeypatch.setattr("qvit.search.latency.measure_seconds", lambda *_, **__: times)
    table = latency_table(VIT.config, SPACE, Place())
    assert table.origin == "measured"
    assert table.fixed == 3.0
    assert table.total([4] * COUNT) == sum(times.values())
