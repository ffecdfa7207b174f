"""What a machine reaches: measured once, kept by its name, and turned into floors."""

import itertools

import pytest
import torch

from qvit import machine
from qvit.latency import circumstances, rates
from qvit.latency.rates import Rates, find_rates

RATES = Rates(
    copies=((1000, 10.0), (10000, 5.0)), operations={"int8": 100.0, "float": 10.0}, created="x"
)


def test_floors_go_by_the_size_of_the_copy_and_the_kind_of_product():
    assert RATES.floor(1000, 0, None) == (100.0, "bytes")
    assert RATES.floor(10, 0, None)[0] == 1.0  # below the first size its rate holds
    assert RATES.floor(9999, 0, None)[0] == 999.9  # as fast as the next smaller copy
    assert RATES.floor(10**6, 0, None)[0] == 2e5
    assert RATES.floor(10, 1000, "int8") == (10.0, "operations")
    assert RATES.floor(10, 1000, "float") == (100.0, "operations")


def test_a_slow_int8_product_is_no_floor():
    slow = Rates(copies=((1, 1e9),), operations={"int8": 1.0, "float": 100.0}, created="x")
    assert slow.floor(0, 1000, "int8") == slow.floor(0, 1000, "float") == (10.0, "operations")


def test_rates_are_measured_once(monkeypatch, tmp_path):
    measured = []
    monkeypatch.setattr(rates, "measure_rates", lambda device: measured.append(device) or RATES)
    monkeypatch.setattr(rates, "is_busy", lambda: False)
    assert [find_rates("cpu", tmp_path) for _ in range(2)] == [RATES, RATES]
    assert measured == ["cpu"]
    (kept,) = tmp_path.iterdir()
    assert f"{torch.get_num_threads()}-threads" in kept.name
    assert machine.name_machine() in kept.name
    kept.write_text("{}")
    assert find_rates("cpu", tmp_path) == RATES
    assert measured == ["cpu", "cpu"]


def test_a_busy_machine_keeps_no_rates(monkeypatch, tmp_path):
    monkeypatch.setattr(rates, "measure_rates", lambda device: RATES)
    monkeypatch.setattr(rates, "is_busy", lambda: True)
    find_rates("cpu", tmp_path)
    assert not list(tmp_path.iterdir())


def test_rates_of_a_card_have_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200 SXM")
    assert "-nvidia-h200-sxm-torch-" in machine.name_device("cuda:1")


def test_busy_is_said(monkeypatch):
    monkeypatch.setattr(circumstances, "busy_share", lambda: 0.4)
    assert "others had 40 % of the cores" in circumstances.find_warnings("cpu")[0]
    assert circumstances.is_busy()
    monkeypatch.setattr(circumstances, "busy_share", lambda: 0.2)
    assert circumstances.find_warnings("cpu") == []
    assert not circumstances.is_busy()


def test_busy_is_what_others_do_on_the_cores_of_this_process(monkeypatch, tmp_path):
    """user nice system idle iowait irq softirq steal guest: two cores of three, and 10 ticks of our own."""
    stat = tmp_path / "stat"
    before = (
        "cpu 0\ncpu0 5 0 0 5 0 0 0 0 9\ncpu1 0 0 0 0 0 0 0 0 0\ncpu2 0 0 0 0 0 0 0 0 0\nintr 1\n"
    )
    after = "cpu 0\ncpu0 35 5 5 55 10 0 0 0 9\ncpu1 90 0 0 0 0 0 0 10 0\ncpu2 9 9 9 9 9 9 9 9 9\nintr 1\n"
    stat.write_text(before)
    clock = itertools.count(1.0, 0.1)
    monkeypatch.setattr(circumstances.os, "sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr(circumstances.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(circumstances.time, "process_time", lambda: next(clock))
    monkeypatch.setattr(circumstances.time, "sleep", lambda seconds: stat.write_text(after))
    assert circumstances.busy_share(stat) == pytest.approx((40 + 100 - 10) / 200)
    assert circumstances.busy_share(tmp_path / "none") == 0.0


def test_rates_of_this_machine(monkeypatch):
    monkeypatch.setattr(rates, "_SECONDS", 0.001)
    monkeypatch.setattr(rates, "_SIDES", {"cpu": 64})
    monkeypatch.setattr(rates, "_COPIES", {"cpu": (2**12, 2**16)})
    found = rates.measure_rates("cpu")
    assert [size for size, _ in found.copies] == [2**12, 2**16]
    assert all(rate > 0 for _, rate in found.copies)
    assert set(found.operations) == {"int8", "float"}
    assert Rates.from_dict(found.to_dict()) == found
