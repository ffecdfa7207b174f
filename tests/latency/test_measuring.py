"""Calls in turns: which float models unlock a speed-up, and what a row says of a timing."""

import pytest

from qvit.kept import BEST_FLOAT
from qvit.latency.measuring import Taken, describe, speedups
from qvit.timing import Timing


def taken(**ms):
    return {name.replace("_", "-"): Taken(Timing(((float(t),),) * 6)) for name, t in ms.items()}


def test_speedups_are_over_every_float_variant_and_the_fastest():
    found = speedups(t := taken(fp32=4, fp32_compile=2, qvit_x=1), t)
    assert {name: ratio["ratio"] for name, ratio in found["qvit-x"].items()} == {
        "fp32": 4.0, "fp32-compile": 2.0, BEST_FLOAT: 2.0,
    }  # fmt: skip
    assert set(found["fp32-compile"]) == {"fp32"}  # the fastest is not compared with itself


@pytest.mark.parametrize(
    ("times", "unlocked"),
    [
        ({"fp32": 1, "fp16_compile": 9}, False),  # the fastest was not compiled
        ({"fp32": 1, "fp32_compile": 9}, True),
        ({"fp32_compile": 1}, True),
        ({"fp32": 1}, False),
        ({"openvino_int8": 1}, False),
    ],
)
def test_no_speedup_without_the_compiled_twin_of_the_fastest(times, unlocked):
    found = speedups(t := taken(qvit_x=1, **times), t)
    assert (BEST_FLOAT in found["qvit-x"]) == unlocked
    assert bool(found["qvit-x"]) == unlocked


def test_a_row_has_the_interval_of_the_mean():
    found = describe(Timing(((1.0, 3.0), (4.0,))))
    assert found["ci95"] == pytest.approx([8 / 3 - 12.706, 8 / 3 + 12.706])
    assert (found["min"], found["p50"], found["max"]) == (1.0, 3.0, 4.0)
    assert describe(Timing(((1.0, 3.0),)))["ci95"] is None
