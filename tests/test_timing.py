"""The stopwatch: alternation, what is counted, percentiles, and ratios that survive a drifting
machine.
"""

import gc
import itertools
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvit import timing
from qvit.timing import Ratio, Timing, measure, median_ratio, ratio_between


def test_callables_alternate_in_an_order_drawn_anew(monkeypatch):
    monkeypatch.setattr(timing, "TURN_SECONDS", 1e-9)  # one counted call a turn
    calls = []
    result = measure(
        {name: lambda name=name: calls.append(name) for name in "abc"}, rounds=12, warmup=2
    )
    # warm-up 2, then one trial (with its settling call) and twelve turns (likewise)
    assert calls.count("a") == 2 + 2 * 13
    turns = calls[3 * 4 :: 2]
    rounds = [tuple(turns[i : i + 3]) for i in range(0, 36, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 3  # rotated, there would be three, and b would always follow a
    assert [len(timing.samples) for timing in result.values()] == [12, 12, 12]
    assert list(result) == ["a", "b", "c"]


def test_a_turn_begins_when_the_threads_of_another_rest():
    """They spin for work that may come, and whoever is timed next has a core less."""
    rests = 0.0

    def spin():
        while time.perf_counter() < rests:
            pass

    def leaves_a_thread():
        nonlocal rests
        rests = time.perf_counter() + 0.05
        threading.Thread(target=spin, daemon=True).start()

    seen = []
    measure(
        {"spins": leaves_a_thread, "next": lambda: seen.append(time.perf_counter() - rests)},
        rounds=4,
        warmup=0,
        turn_seconds=1e-9,
    )
    assert min(seen[2:]) > -0.02  # the trial comes first, and does not wait


@pytest.mark.parametrize(
    ("ms", "counted", "cold"), [(30, 1, 1), (10, 3, 1), (5, 6, 2), (1, 30, 10)]
)
def test_calls_that_fetch_weights_are_not_counted(monkeypatch, ms, counted, cold):
    now = 0

    def call():
        nonlocal now
        now += ms * 10**6

    monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: now)
    found = measure({"a": call}, rounds=4, warmup=0)["a"]
    assert [len(turn) for turn in found.rounds] == [counted] * 4
    assert now == ms * 10**6 * (2 + 4 * (cold + counted))  # the trial, then the turns


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


@given(st.lists(st.floats(0.1, 10), min_size=6, max_size=30))
def test_intervals_hold_their_median(values):
    ratio = median_ratio(values)
    low, high = ratio.interval or (0.0, 0.0)
    assert min(values) <= low <= ratio.value <= high <= max(values)


def test_the_interval_of_a_median_leaves_out_as_many_as_chance_allows():
    """2 * P(Binomial(n, 1/2) <= k) <= 0.05: k is 0 for 6 to 8, 1 from 9 on, 2 from 12 on, 5 for 20."""
    for count, outside in ((6, 0), (8, 0), (9, 1), (11, 1), (12, 2), (20, 5)):
        ratios = [float(value) for value in range(count, 0, -1)]
        found = median_ratio(ratios)
        assert (found.value, found.interval) == ((count + 1) / 2, (1 + outside, count - outside))


@pytest.mark.parametrize("count", range(1, 6))
def test_below_six_rounds_no_interval_is_claimed(count):
    found = median_ratio([1.5] * count)
    assert (found.value, found.low, found.high, found.spread) == (1.5, None, None, None)
    assert not found.steady


def test_steady_is_an_interval_within_a_fortieth():
    assert Ratio(2.0, (1.98, 2.025)).spread == pytest.approx(0.0225)
    assert Ratio(2.0, (1.98, 2.025)).steady
    assert not Ratio(2.0, (1.97, 2.03)).steady


def test_the_interval_of_the_mean_is_students_over_rounds():
    """Rounds of means 1, 2, 3 and 4: 2.5 +- 3.182 * 1.29099 / 2, whatever the calls of a round are."""
    low, high = Timing(((1.0, 1.0), (0.5, 3.5), (2.9, 3.1), (4.0, 4.0))).mean_interval or (0.0, 0.0)
    half = 3.182 * 1.290994 / 2
    assert (low, high) == (pytest.approx(2.5 - half, abs=0.02), pytest.approx(2.5 + half, abs=0.02))
    assert Timing(((1.0, 2.0),)).mean_interval is None
    low, high = rounds_of(*[float(i % 2) for i in range(40)]).mean_interval or (0.0, 0.0)
    assert high - low == pytest.approx(2 * 2.023 * 0.5064 / 40**0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (11, 2.201), (30, 2.042)]
)  # fmt: skip
def test_quantiles_of_student(freedom, quantile):
    assert timing._student(freedom) == pytest.approx(quantile, rel=0.012)


def test_a_ratio_of_unpaired_values():
    """Of 12 and 12 Mann and Whitney's interval begins at the 38th of 144 quotients; of 3 and 3 there is none."""
    values = [2.0 * 1.01**i for i in range(12)]
    others = [1.01 ** (20 * i) for i in range(12)]
    found = ratio_between(values, others)
    quotients = sorted(a / b for a in values for b in others)
    assert found.interval == (quotients[37], quotients[-38])
    assert found.value == pytest.approx((quotients[71] + quotients[72]) / 2)
    assert ratio_between([3.0] * 3, [2.0] * 3) == Ratio(1.5, None)
    assert ratio_between([3.0] * 4, [2.0] * 4).interval == (1.5, 1.5)


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
    measure({"a": lambda: None}, rounds=4, after_round=rounds.append)
    assert rounds == [4] * 4


@pytest.mark.parametrize(("seconds", "rounds"), [(0.001, 12), (0.3, None), (1e9, 400)])
def test_rounds_are_as_many_as_fit_the_time(monkeypatch, seconds, rounds):
    """Two callables of 2 ms, called once for nothing and once counted: a round of 8 ms or a little more."""
    monkeypatch.setattr(timing, "MEASURE_SECONDS", seconds)
    sleepy = {name: lambda: time.sleep(0.002 if seconds < 1 else 0) for name in "ab"}
    found = measure(sleepy, rounds=None, turn_seconds=0.0)
    counted = {len(watch.rounds) for watch in found.values()}
    assert counted == {rounds} if rounds else 12 <= min(counted) <= max(counted) <= 0.3 / 0.008


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
