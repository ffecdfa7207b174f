"""The CSV: timm's columns agree with each other, and every figure is in its own."""

import csv
import io

from qvit.latency import to_csv
from qvit.latency.variants import FLOAT
from tests.latency.reports import report, row


def test_columns():
    line = row("qvit-w4a4-cpu", 8, 1.0)
    line["latency_ms"] = {
        "mean": 4.0, "std": 0.5, "min": 1.0, "p50": 2.0, "p90": 5.0, "p95": 6.0, "p99": 7.0, "max": 9.0,
        "ci95": [3.0, 5.0],
    }  # fmt: skip
    line["speedup_vs"] = {
        "fp32": {"ratio": 3.0, "low": 2.9, "high": 3.1},
        "best_float": {"ratio": 2.0, "low": 1.5, "high": 2.5, "steady": False},
    }
    single = row("fp32", 1, 3.0)
    single["latency_ms"]["ci95"] = None
    first, second = csv.DictReader(io.StringIO(to_csv(report([line, single]))))
    assert (first["infer_step_time"], first["infer_samples_per_sec"]) == ("4", "2000")
    assert [first[k] for k in ("min", "p50", "ci95_low", "ci95_high")] == ["1", "2", "3", "5"]
    names = ("speedup_vs_best_float", "speedup_low", "speedup_high", "speedup_vs_fp32")
    assert [first[k] for k in names] == ["2", "1.5", "2.5", "3"]
    assert (first["speedup_steady"], second["speedup_steady"]) == ("False", "")
    assert [first[f"speedup_vs_{name}"] for name in FLOAT if name != "fp32"] == [""] * 5
    assert (first["model"], first["iters"], first["warmup"]) == ("vit_x", "10", "3")
    assert (second["ci95_low"], second["speedup_low"]) == ("", "")
