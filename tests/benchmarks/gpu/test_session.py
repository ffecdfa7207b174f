"""What every GPU suite relies on: it stops in time, goes on where it stopped, and times nothing unchecked."""

import json
import subprocess
import sys
from importlib import import_module

import pytest

from benchmarks.gpu import ledger as ledger_module
from benchmarks.gpu import session as gpu_session
from tests.conftest import ROOT


def counting(calls, *names):
    """Cells that note when they are measured."""

    def work(name):
        def measure():
            calls.append(name)
            return {"value": len(calls)}

        return measure

    return [(name, work(name)) for name in names]


def test_second_call_measures_only_what_is_left(dry_session):
    calls = []
    session = dry_session()
    first = session.open("some")
    assert session.run(first, counting(calls, "a", "b")) == []
    again = session.open("some")
    assert session.run(again, counting(calls, "a", "b", "c")) == []
    assert calls == ["a", "b", "c"]
    assert again.cells["a"] == {"value": 1}


def test_deadline_leaves_the_rest_and_the_next_call_takes_it(dry_session, monkeypatch):
    """Cells of 10 s in 35 s: the fourth would end too late."""
    calls, now = [], [0.0]
    monkeypatch.setattr(gpu_session.time, "monotonic", lambda: now[0])

    def slow(name):
        def measure():
            now[0] += 10.0
            calls.append(name)
            return {}

        return measure

    cells = [(name, slow(name)) for name in "abcde"]
    session = dry_session(35.0)
    assert session.run(session.open("some"), cells) == ["d", "e"]
    session = dry_session(35.0)
    assert session.run(session.open("some"), cells) == []
    assert calls == list("abcde")


def test_results_of_other_sources_are_not_continued(dry_session, monkeypatch):
    calls = []
    session = dry_session()
    session.run(session.open("some"), counting(calls, "a"))
    monkeypatch.setattr(gpu_session, "source_hash", lambda: "f" * 16)
    other = session.open("some")
    assert other.replaced
    assert session.run(other, counting(calls, "a")) == []
    assert calls == ["a", "a"]


def test_a_failing_cell_is_kept_and_the_others_go_on(dry_session):
    def fail():
        raise ValueError("no such tile\nand more")

    session, calls = dry_session(), []
    ledger = session.open("some")
    session.run(ledger, [("bad", fail), *counting(calls, "good")])
    assert ledger.cells["bad"] == {"error": "ValueError: no such tile"}
    assert calls == ["good"]


def test_ledger_is_valid_json_after_every_cell(tmp_path):
    path = tmp_path / "some.json"
    ledger = ledger_module.Ledger(path, {"card": "x"})
    for index in range(3):
        ledger.add(f'cell "{index}"', {"ms": index / 3})
        assert len(json.loads(path.read_text())["cells"]) == index + 1
    ledger.close({"passed": True}, {"command": "some"})
    read = ledger_module.Ledger(path, {"card": "x"})
    assert (read.cells, read.summary) == (ledger.cells, {"passed": True})


@pytest.mark.parametrize("content", ["", "[1]", '{"cells": {}}', "{"])
def test_a_damaged_ledger_is_begun_anew(tmp_path, content):
    path = tmp_path / "some.json"
    path.write_text(content)
    ledger = ledger_module.Ledger(path, {"card": "x"})
    assert ledger.cells == {}
    ledger.add("a", {})
    assert json.loads(path.read_text())["cells"] == {"a": {}}


@pytest.mark.parametrize("suite", ["kernels", "models", "tuner"])
@pytest.mark.parametrize("check", [None, {"passed": False}, {}])
def test_no_speed_without_a_green_check(dry_session, suite, check):
    session = dry_session()
    if check is not None:
        session.close(session.open("gpu-check"), check)
    module = import_module(f"benchmarks.gpu.{suite}")
    with pytest.raises(gpu_session.RefusalError, match="gpu-check"):
        module.run(session)
    assert not (session.folder / f"{module.SUITE}.json").exists()


def test_a_green_check_of_other_sources_does_not_count(green, monkeypatch):
    monkeypatch.setattr(gpu_session, "source_hash", lambda: "f" * 16)
    with pytest.raises(gpu_session.RefusalError, match="other sources"):
        green().require_green_check()


def test_a_green_check_counts(green):
    green().require_green_check()


def test_source_hash_follows_the_kernels(tmp_path, monkeypatch):
    for name in ("kernels/qvit_kernels/a.py", "qvit/b.py", "benchmarks/checks/c.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(gpu_session, "ROOT", tmp_path)
    hashes = [gpu_session.source_hash()]
    (tmp_path / "qvit/b.py").write_text("x = 2\n")
    hashes.append(gpu_session.source_hash())
    (tmp_path / "kernels/qvit_kernels/tuned").mkdir()
    (tmp_path / "kernels/qvit_kernels/tuned/card.json").write_text("{}")
    hashes.append(gpu_session.source_hash())
    (tmp_path / "benchmarks/checks/c.py").write_text("x = 2\n")
    hashes.append(gpu_session.source_hash())
    assert len(set(hashes)) == 4


def test_card_names_are_file_names():
    assert gpu_session.card_slug("NVIDIA H200") == "nvidia-h200"
    assert gpu_session.card_slug("NVIDIA GeForce RTX 4090 (D)") == "nvidia-geforce-rtx-4090-d"


def test_without_a_card_the_message_is_clear(child_environment, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "run.py", "--suite", "gpu-check", "--out", tmp_path],
        env=child_environment | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr
    assert "--dry-run" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
