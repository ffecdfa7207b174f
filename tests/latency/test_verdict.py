"""Sentences computed from figures: each says what its figures say, and changes with them."""

import pytest

from qvit.kept import BEST_FLOAT
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
    """On logarithmic axes: a quarter at batch 1 and twice at batch 64 meet one two thirds of the way, at 16."""
    text = said([*pair(1, 4.0, 1.0), *pair(64, 4.0, 8.0)])
    assert (
        "It pays from batch 64 on, of those measured (1, 64), by interpolation from about 16."
        in text
    )


@pytest.mark.parametrize("ratio", [0.99, 1.01])
def test_a_ratio_within_its_spread_of_one_is_not_told_apart(ratio):
    text = said([row(FAST, 1, ratio), row(OWN, 1, 1.0, speedup=ratio, spread=0.08)])
    assert (
        "It pays at none of the batch sizes that were measured (1); at 1 it cannot be told apart from the fastest float"
    ) in text
    assert f"{OWN} at batch 1 (8 %)" in text


def test_the_interval_of_a_slower_model_is_that_of_how_much_longer_it_takes():
    vs = {"ratio": 0.5, "low": 0.4, "high": 0.8, "spread": 0.8, "steady": False}
    text = said([row(FAST, 1, 1.0), row(OWN, 1, 2.0) | {"speedup_vs": {BEST_FLOAT: vs}}])
    assert "2.00 times as long as bf16-compile" in text
    assert "(95 % interval 1.25 to 2.50)" in text


def test_too_few_rounds_claim_nothing():
    text = said([row(FAST, 1, 2.0), row(OWN, 1, 1.0, speedup=2.0, spread=None)])
    assert (
        "2.00 times as fast as bf16-compile, the fastest float model here (too few rounds" in text
    )
    assert "It pays" not in text
    assert "have no interval" in text


def test_steady_ratios_are_not_mentioned():
    assert "another run" not in said(pair(1, 1.0, 2.0))


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ([layer("head", 0.5, 0.2)], "Gaps hold it up"),
        ([layer("head", 0.9, 0.1)], "Neither arithmetic nor memory holds it up"),
        ([layer("head", 0.9, 0.8)], "Arithmetic holds it up"),
        ([layer("head", 0.9, 0.8, bound="bytes")], "Memory holds it up"),
    ],
)
def test_which_bound_holds(layers, sentence):
    rows = [row(FAST, 1, 2.0), row(OWN, 1, 1.0, speedup=2.0, launch_count=90)]
    text = said(rows, layers)
    assert sentence in text
    held = ("Gaps hold", "Neither arithmetic", "Arithmetic holds", "Memory holds")
    assert sum(words in text for words in held) == 1


def test_one_program_has_no_launches_to_wait_for():
    text = said(pair(1, 1.0, 2.0), [layer("blocks.0.norm1", 0.3, 0.2), layer("head", None, 0.2)])
    assert (
        "30 % of the time are layers, 70 % gaps between them and what no clock sees alone (head)"
        in text
    )
    assert "a pass is a single one" in text
    assert "launches from Python" not in text


def test_a_graph_has_no_launches_to_wait_for():
    rows = pair(1, 1.0, 2.0)
    rows[-1] |= {"mode": "cudagraph", "launch_count": 3}
    text = said(rows, [layer("head", 0.3, 0.2)])
    assert "a graph launches the whole pass at once" in text
    assert "launches from Python" not in text


def test_layers_that_were_slower_alone_give_no_bound():
    text = said(pair(1, 1.0, 2.0), [layer("head", 5.0, 3.0)])
    assert "one by one, took 5.00 ms, and a whole pass 1.00" in text
    assert "holds it up" not in text
    assert "floor for the same" not in text


def test_a_floor_above_the_time_is_not_believed():
    text = said(pair(1, 1.0, 2.0), [layer("head", 0.9, 1.5)])
    assert "did better than the machine when its rates were measured" in text
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
    both = said([row(OWN, 1, 1.0, compute_dtype="float/int8")])
    assert "Some matrix products of the integers are computed in float" in both
    assert "8 where they are multiplied" in both


def test_a_machine_without_fast_integers_is_named_once():
    rows, fast = [*pair(1, 1.0, 2.0), row("qvit-w4a4-reference", 1, 9.0)], "gains nothing here"
    slow = {"copies": [], "operations": {"int8": 1e9, "float": 2e10}, "created": "now"}
    assert said(rows, rates=slow).count("int8 at 1 Gop/s and floats at 20") == 1
    assert fast not in said(rows)


def test_without_a_compiled_float_model_the_reason_is_said():
    left = [{"variant": "fp32-compile", "reason": "no compiler", "command": None}]
    text = said([row("fp32", 1, 2.0), row(OWN, 1, 1.0)], left_out=left)
    assert (
        "No speed-up is stated at batch 1: the fastest float model was not timed compiled, as fp32-comp"
        in text
    )
    assert "(no compiler)" in text
    assert "times as fast" not in text
    assert "No speed-up is stated at batch 1: no float model was timed" in said([row(OWN, 1, 1.0)])


def test_a_float_model_alone():
    assert "Batch 1: bf16-compile is the fastest of 2, 1.00 ms" in said(
        [row("fp32", 1, 2.0), row(FAST, 1, 1.0)]
    )


def test_a_slow_path_of_every_batch_size_is_said_once():
    layers = [
        layer("blocks.0.mlp.fc1", 1.0, 0.5, batch=batch, reason="no VNNI") for batch in (1, 8)
    ]
    text = said([row(OWN, 1, 1.0), row(OWN, 8, 1.0)], layers)
    assert text.count("Slow path: no VNNI.") == 1
    assert text.count("of the time are layers") == 2


def test_shares_are_of_the_passes_that_layers_were_timed_beside():
    """Not of the rounds, minutes before: the machine was twice as fast then."""
    beside = layer("head", 0.9, 0.8) | {"pass_ms": 2.0}
    text = said(pair(1, 1.0, 2.0), [beside])
    assert "Batch 1: 45 % of the time are layers" in text
    assert "is 40 % of it" in text
