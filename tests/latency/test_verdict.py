"""Sentences computed from figures: each says what its figures say, and changes with them."""

import pytest

from qvit.latency.verdict import judge
from tests.latency.reports import layer, report, row

OWN, FAST = "qvit-w4a4-cpu", "bf16-compile"


def pair(batch, ours, theirs):
    return [row(FAST, batch, theirs), row(OWN, batch, ours, speedup=theirs / ours)]


def said(rows, layers=(), **changes):
    return "\n".join(judge(report(rows, layers, **changes)))


@pytest.mark.parametrize(
    ("times", "sentence"),
    [
        ([(1, 1.0, 2.0), (8, 5.0, 9.0)], "every batch size that was measured (1, 8)"),
        ([(1, 2.0, 1.0), (8, 9.0, 5.0)], "none of the batch sizes that were measured (1, 8)"),
        ([(1, 1.0, 2.0), (8, 9.0, 5.0)], "batch 1, not at all of 1, 8"),
    ],
)
def test_where_it_pays(times, sentence):
    text = said([each for batch, a, b in times for each in pair(batch, a, b)])
    assert f"It pays at {sentence}" in text


def test_the_crossover():
    text = said([*pair(1, 2.0, 1.0), *pair(16, 4.0, 8.0)])
    assert (
        "It pays from batch 16 on, of those measured (1, 16), by interpolation from about 4."
        in text
    )


def test_a_ratio_within_its_spread_of_one_does_not_pay():
    rows = [row(FAST, 1, 1.01), row(OWN, 1, 1.0, speedup=1.01, spread=0.08)]
    text = said(rows)
    assert "It pays at every" not in text
    assert f"{OWN} at batch 1 (8 %)" in text


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ([layer("head", 0.3, 0.2)], "Gaps hold it up"),
        ([layer("head", 0.9, 0.1)], "Neither arithmetic nor memory holds it up"),
        ([layer("head", 0.9, 0.8)], "Arithmetic holds it up"),
        ([layer("head", 0.9, 0.8, bound="bytes")], "Memory holds it up"),
    ],
)
def test_which_bound_holds(layers, sentence):
    assert sentence in said(pair(1, 1.0, 2.0), layers)


def test_a_floor_above_the_time_is_not_believed():
    text = said(pair(1, 1.0, 2.0), [layer("head", 0.9, 1.5)])
    assert "busier when its rates were measured" in text
    assert "holds it up" not in text


def test_shares_and_layers_far_from_their_floor_are_named():
    layers = [layer("blocks.0.mlp.fc1", 0.5, 0.1, reason="no VNNI"), layer("head", 0.2, 0.19)]
    text = said(pair(1, 1.0, 2.0), layers)
    assert "70 % of the time are layers, 30 % gaps" in text
    assert (
        "blocks.*.mlp.fc1 (linear) has 71 % of the layers' time and takes 5.0 times its floor"
        in text
    )
    assert "head (linear)" not in text
    assert "Slow path: no VNNI." in text


def test_storage_is_told_from_computation():
    assert "4.25 bits where they are stored and 8 where they are multiplied" in said(
        pair(1, 1.0, 2.0)
    )
    assert "computed in float here" in said([row(OWN, 1, 1.0, compute_dtype="float")])


def test_a_machine_without_fast_integers_is_named():
    rows, fast = pair(1, 1.0, 2.0), "cannot be faster"
    slow = {"copies": [], "operations": {"int8": 1e9, "float": 2e10}, "created": "now"}
    assert "int8 at 1 Gop/s and floats at 20" in said(rows, rates=slow)
    assert fast not in said(rows)


def test_without_a_compiled_float_model_the_reason_is_said():
    left = [{"variant": FAST, "reason": "no compiler", "command": None}]
    text = said([row("fp32", 1, 2.0), row(OWN, 1, 1.0)], left_out=left)
    assert "No speed-up is stated: no compiled float model was timed (no compiler)" in text
    assert "times as fast" not in text


def test_a_float_model_alone():
    assert "Batch 1: bf16-compile is the fastest of 2, 1.00 ms" in said(
        [row("fp32", 1, 2.0), row(FAST, 1, 1.0)]
    )
