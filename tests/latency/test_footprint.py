"""What a footprint counts, on a clock and a memory of our own."""

from types import SimpleNamespace

import pytest
import torch

from qvit.latency import footprint


def test_loading_is_no_part_of_the_first_call_nor_of_the_peak_what_was_there(monkeypatch):
    clock = iter((10.0, 12.0, 15.0))
    memory = {"VmRSS": 100e6, "VmHWM": 150e6}
    source = SimpleNamespace(pretrained_cfg={"input_size": (3, 4, 4)})
    monkeypatch.setattr(footprint, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(footprint, "_memory", lambda name: int(memory[name]))
    monkeypatch.setattr(footprint, "_subject", lambda job: SimpleNamespace(source=source))
    monkeypatch.setattr(footprint, "_load", lambda job, images: (lambda: None, True))
    job = {"threads": torch.get_num_threads(), "device": "cpu", "batch": 1}
    grad = torch.is_grad_enabled()
    try:
        found = footprint.take(job)
    finally:
        torch.set_grad_enabled(grad)
    assert found == {"peak_mem_mb": pytest.approx(50.0), "load_s": 2.0, "first_call_s": 3.0}


class Process:
    """One that answers every job with the same line."""

    def __init__(self, line):
        self.stdin = SimpleNamespace(write=len, flush=lambda: None)
        self.stdout = SimpleNamespace(readline=lambda: line)


@pytest.mark.parametrize(
    ("line", "failure"),
    [
        ('{"error": "OutOfMemoryError: no"}', "OutOfMemoryError: no"),
        ("", "its process is gone"),
        ('{"load_s": 1.0}', None),
    ],
)
def test_a_failure_is_told(line, failure):
    nursery = footprint.Nursery()
    nursery._process = Process(line)
    found, told = nursery.measure({})
    assert told == failure
    assert found == {"peak_mem_mb": None, "load_s": None if failure else 1.0, "first_call_s": None}
