"""Latency tables: modelled for cards, and measured here, once."""

import json

import pytest
import torch

from qvit.deployment.quantvit import QuantViT
from qvit.errors import UsageError
from qvit.models.plan import plan_scheme
from qvit.search import stopwatch
from qvit.search.cards import CARDS, Card, model_seconds
from qvit.search.latency import Place, _between_kernels, latency_table, with_kernel
from qvit.search.stopwatch import measure_seconds
from tests.search.test_costs import COUNT, SPACE, VIT

pytest.importorskip("triton")
H200 = Place("nvidia-h200")


@pytest.fixture(scope="module")
def modelled():
    return latency_table(VIT.config, SPACE, H200)


def test_widths_without_a_kernel_cost_what_the_next_one_does(modelled):
    assert [with_kernel(pair) for pair in ((2, 3), (4, 5), (5, 2), (8, 8))] == [
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


def test_a_table_of_here(monkeypatch):
    times = dict.fromkeys(VIT.config.linears(), 1.0) | {
        "blocks.0.norm1": 0.5,
        "norm": 2.0,
        "last": 3.0,
    }
    monkeypatch.setattr("qvit.search.latency.measure_seconds", lambda *_: times)
    table = latency_table(VIT.config, SPACE, Place())
    assert table.origin == "measured"
    assert table.fixed == 3.0
    assert table.total([4] * COUNT) == sum(times.values())
