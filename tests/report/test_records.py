"""The lines of a log become traces; what was given up leaves nothing but a sentence."""

import json
from pathlib import Path

from qvit.report.records import read_run


def finished(batch, before, after):
    ends = (
        {"head_distance": 0.5, "patch_entropy": before},
        {"head_distance": 0.4, "patch_entropy": after},
    )
    return {
        "batch": batch,
        "event": "finished",
        "seconds": 2.5,
        "before": ends[0],
        "after": ends[1],
    }


def test_traces_and_recoveries():
    log = [
        {"batch": 0, "iteration": 0, "seconds": 0.1, "loss": 9.0, "classes": 3.0},
        {"batch": 0, "event": "measured", "iteration": 2, "head_distance": 0.9, "patch_entropy": 9},
        {"batch": 0, "event": "retried", "attempt": 0, "iteration": 3},
        {"batch": 0, "iteration": 0, "seconds": 0.3, "classes": 2.0, "loss": 8.0},
        {
            "batch": 0,
            "event": "measured",
            "iteration": 2,
            "head_distance": 0.45,
            "patch_entropy": 1.5,
        },
        {"batch": 0, "iteration": 3, "seconds": 0.4, "classes": 1.0, "loss": 7.0},
        finished(0, 1.0, 2.0),
        {"batch": 1, "iteration": 0, "seconds": 0.1, "loss": 6.0, "classes": 0.5},
        finished(1, 1.1, 2.1),
    ]
    run = read_run(Path("run"), {"settings": {"iterations": 4}}, log)
    assert run.seconds == 5.0
    assert list(run.terms) == ["loss", "classes"]
    assert run.terms["loss"] == {0: [(0, 8.0), (3, 7.0)], 1: [(0, 6.0)]}
    assert run.measures["patch_entropy"] == {
        0: [(0, 1.0), (2, 1.5), (4, 2.0)],
        1: [(0, 1.1), (4, 2.1)],
    }
    (said,) = run.recoveries
    assert "Batch 0" in said
    assert "iteration 3" in said


def test_what_was_not_finite_leaves_a_gap():
    log = [
        {
            "batch": 0,
            "event": "measured",
            "iteration": 2,
            "head_distance": None,
            "patch_entropy": 9,
        },
        finished(0, None, 2.0),
        finished(1, None, None),
    ]
    run = read_run(Path("run"), {"settings": {"iterations": 4}}, log)
    assert run.measures["patch_entropy"] == {0: [(2, 9), (4, 2.0)]}
    assert run.measures["head_distance"] == {0: [(0, 0.5), (4, 0.4)], 1: [(0, 0.5), (4, 0.4)]}


def test_a_method_without_iterations_has_no_traces():
    run = read_run(Path("run"), {"settings": {"iterations": 0}}, [finished(0, 1.0, 2.0)])
    assert run.terms == run.measures == {}


def test_the_training_of_a_generator_is_the_trace(tmp_path):
    lines = [
        {"iteration": 0, "seconds": 1.0, "loss": 9.0, "centres": 0.3},
        {"iteration": 5, "seconds": 7.0, "loss": 4.0, "centres": 0.1},
    ]
    (tmp_path / "generator.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(tmp_path, {"settings": {"iterations": 6}}, [finished(0, 1.0, 2.0)])
    assert run.terms == {"loss": {0: [(0, 9.0), (5, 4.0)]}, "centres": {0: [(0, 0.3), (5, 0.1)]}}
    assert run.seconds == 9.5
