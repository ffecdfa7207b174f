"""What a machine reaches: measured once, kept by its name, and turned into floors."""

import pytest
import torch

from qvit.latency import circumstances, rates
from qvit.latency.rates import Rates, find_rates

RATES = Rates(
    copies=((1000, 10.0), (10000, 5.0)), operations={"int8": 100.0, "float": 10.0}, created="x"
)


def test_floors_go_by_the_size_of_the_copy_and_the_kind_of_product():
    assert RATES.floor(1000, 0, None) == (100.0, "bytes")
    assert RATES.floor(1001, 0, None) == (pytest.approx(200.2), "bytes")
    assert RATES.floor(10**6, 0, None)[0] == 2e5  # beyond the last size its rate holds
    assert RATES.floor(10, 1000, "int8") == (10.0, "operations")
    assert RATES.floor(10, 1000, "float") == (100.0, "operations")


def test_rates_are_measured_once(monkeypatch, tmp_path):
    measured = []
    monkeypatch.setattr(rates, "measure_rates", lambda device: measured.append(device) or RATES)
    monkeypatch.setattr(rates, "is_busy", lambda: False)
    assert [find_rates("cpu", tmp_path) for _ in range(2)] == [RATES, RATES]
    assert measured == ["cpu"]
    (kept,) = tmp_path.iterdir()
    assert f"{torch.get_num_threads()}-threads" in kept.name
    kept.write_text("{}")
    assert find_rates("cpu", tmp_path) == RATES
    assert measured == ["cpu", "cpu"]


def test_a_busy_machine_keeps_no_rates(monkeypatch, tmp_path):
    monkeypatch.setattr(rates, "measure_rates", lambda device: RATES)
    monkeypatch.setattr(rates, "is_busy", lambda: True)
    find_rates("cpu", tmp_path)
    assert not list(tmp_path.iterdir())


def test_busy_is_said(monkeypatch):
    monkeypatch.setattr(circumstances.os, "getloadavg", lambda: (9.0, 0, 0))
    assert "a load of 9.0" in circumstances.find_warnings("cpu")[0]
    monkeypatch.setattr(circumstances.os, "getloadavg", lambda: (0.1, 0, 0))
    assert circumstances.find_warnings("cpu") == []


def test_rates_of_this_machine(monkeypatch):
    monkeypatch.setattr(rates, "_SECONDS", 0.001)
    monkeypatch.setattr(rates, "_SIDES", {"cpu": 64})
    monkeypatch.setattr(rates, "_COPIES", {"cpu": (2**12, 2**16)})
    found = rates.measure_rates("cpu")
    assert [size for size, _ in found.copies] == [2**12, 2**16]
    assert all(rate > 0 for _, rate in found.copies)
    assert set(found.operations) == {"int8", "float"}
    assert Rates.from_dict(found.to_dict()) == found
