"""The stopwatch: alternation, what is counted, percentiles, and ratios that survive a drifting
machine.
"""

import gc
import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvit import timing
from qvit.timing import Timing, measure


def test_callables_alternate_and_the_order_rotates(monkeypatch):
    monkeypatch.setattr(timing, "TURN_SECONDS", 1e-9)  # one counted call a turn
    calls = []
    result = measure(
        {name: lambda name=name: calls.append(name) for name in "abc"}, rounds=3, warmup=2
    )
    turns = [name for name, _ in itertools.groupby(calls)]
    # warm-up of each, then rounds that begin with a, b and c; where two turns meet they merge
    assert turns == list("abcabcbcacab")
    assert [len(timing.samples) for timing in result.values()] == [3, 3, 3]
    assert list(result) == ["a", "b", "c"]
    # warm-up 2, then one trial (with its settling call) and three turns (likewise)
    assert calls.count("a") == 2 + 2 * 4


def test_a_sample_is_the_time_of_one_call():
    result = measure(
        {"short": lambda: time.sleep(0.002), "long": lambda: time.sleep(0.02)}, rounds=2
    )
    assert 2 <= result["short"].median < 15
    assert 20 <= result["long"].median < 60
    assert len(result["short"].samples) > len(result["long"].samples) >= 2
    assert result["short"].speedup_over(result["long"]) > 2


def test_percentiles_are_linear_between_samples():
    watch = Timing(((4.0, 1.0), (3.0, 2.0, 5.0)))
    assert watch.samples == (4.0, 1.0, 3.0, 2.0, 5.0)
    assert [watch.percentile(q) for q in (0, 25, 50, 90, 100)] == [1.0, 2.0, 3.0, 4.6, 5.0]
    assert Timing(((7.0,),)).percentile(99) == 7.0


def test_speedup_is_paired_by_round():
    """The machine slows down threefold in the second half, for both: the ratio must not notice."""
    ours = Timing(((1.0,), (1.0,), (3.0,), (3.0,), (3.0,)))
    theirs = Timing(((2.0,), (2.0,), (6.0,), (6.0,), (6.0,)))
    assert ours.speedup_over(theirs) == 2.0
    with pytest.raises(ValueError, match="zip"):
        ours.speedup_over(Timing(((1.0,),)))


def rounds_of(*values):
    return Timing(tuple((value,) for value in values))


def test_a_ratio_has_the_interval_of_its_order_statistics():
    """Of ten rounds the second and the ninth hold the median 97.9 times in 100, the third and the eighth only 89."""
    ratio = rounds_of(*[1.0] * 10).ratio_to(rounds_of(*range(1, 11)))
    assert (ratio.value, ratio.low, ratio.high) == (5.5, 2, 9)
    assert ratio.spread == pytest.approx(7 / 5.5)
    assert not ratio.steady


def test_few_rounds_are_never_steady():
    assert rounds_of(*[1.0] * 6).ratio_to(rounds_of(*[2.0] * 6)).steady
    assert not rounds_of(*[1.0] * 5).ratio_to(rounds_of(*[2.0] * 5)).steady
    ratio = rounds_of(1.0, 1.0).ratio_to(rounds_of(2.0, 3.0))
    assert (ratio.low, ratio.high) == (2.0, 3.0)


def test_the_interval_of_the_mean_is_students():
    assert rounds_of(3.0).mean_interval == (3.0, 3.0)
    low, high = rounds_of(1.0, 2.0, 3.0, 4.0).mean_interval
    half = 3.182 * (5 / 3) ** 0.5 / 2  # t of three degrees of freedom
    assert (low, high) == pytest.approx((2.5 - half, 2.5 + half), abs=0.01 * half)
    low, high = rounds_of(*[float(i % 2) for i in range(40)]).mean_interval
    assert high - low == pytest.approx(2 * 2.023 * 0.5064 / 40**0.5, rel=1e-3)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=30))
def test_intervals_hold_their_median(values):
    ratio = timing.median_ratio(values)
    assert min(values) <= ratio.low <= ratio.value <= ratio.high <= max(values)


def test_garbage_collection_waits_and_comes_back():
    states = []
    measure({"a": lambda: states.append(gc.isenabled())}, rounds=1, warmup=1)
    assert states[0]
    assert not states[-1]
    assert gc.isenabled()


def test_garbage_collection_comes_back_after_a_failure():
    calls = itertools.count()

    def fail_later() -> None:
        if next(calls) > 4:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        measure({"a": fail_later}, rounds=3, warmup=1)
    assert gc.isenabled()


def test_progress_is_told_after_each_round():
    rounds = []
    measure({"a": lambda: None}, rounds=4, after_round=lambda: rounds.append(1))
    assert len(rounds) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({}, {}), "nothing to measure"),
        (({"a": print}, {"rounds": 0}), "at least 1"),
        (({"a": print}, {"warmup": -1}), "at least 1"),
    ],
)
def test_refusals(arguments, message):
    callables, settings = arguments
    with pytest.raises(ValueError, match=message):
        measure(callables, **settings)


@pytest.mark.cuda
def test_cuda_time_covers_the_kernel_not_the_launch():
    import torch

    large = torch.randn(4096, 4096, device="cuda")
    small = torch.randn(16, 16, device="cuda")
    result = measure(
        {"large": lambda: large @ large, "small": lambda: small @ small}, rounds=3, device="cuda"
    )
    assert result["large"].median > 3 * result["small"].median
