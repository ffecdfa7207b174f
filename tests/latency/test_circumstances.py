"""What a report says of the circumstances that it came about in."""

from qvit.latency.circumstances import describe_run, warn_of_variation
from tests.latency.reports import row


def test_a_run_is_described(monkeypatch):
    monkeypatch.setattr("qvit.machine.source_commit", lambda: "0123456789ab")
    cards = {1: {"name": "NVIDIA H200", "driver": "580.95"}}
    monkeypatch.setattr("qvit.machine.describe_card", cards.get)
    found = describe_run("cuda:1")
    assert (found["gpu"], found["commit"]) == (cards[1], "0123456789ab")
    assert found["versions"]["driver"] == "580.95"
    assert {"qvit", "torch", "triton", "cuda"} <= found["versions"].keys()
    found = describe_run("cpu")
    assert (found["gpu"], found["versions"]["driver"]) == (None, None)
    assert found["machine"]["threads"] >= 1


def test_times_that_vary_are_told():
    def varying(variant, std):
        found = row(variant, 8, 2.0)
        found["latency_ms"] |= {"std": std, "mean": 2.0}
        return found

    assert warn_of_variation([varying("fp32", 0.2)]) == []
    (said,) = warn_of_variation([varying("fp32", 0.3), varying("bf16", 0.6), varying("fp16", 0.1)])
    assert "2 of 3 rows vary by more than 10 %" in said
    assert "bf16 at batch 8: 30 %" in said
