"""The suites that time: their dry runs, what they say of a target, and the tuner's table."""

import json
import subprocess
import sys
from importlib import import_module

import pytest
import torch

from benchmarks.cases import kernels as kernel_cases
from benchmarks.gpu import compiling_ahead, model_targets, tuner
from benchmarks.gpu import models as gpu_models
from benchmarks.gpu import targets as kernel_targets
from benchmarks.gpu import timing as gpu_timing
from benchmarks.gpu.ledger import Ledger
from qvit_kernels import fused, tiles
from qvit_kernels.tiles import Tile
from tests.conftest import ROOT
from tests.dispatch_trace import tracing

SMALL, OTHER = Tile(16, 64, 64, 4, 3), Tile(32, 64, 64, 4, 3)


@pytest.mark.parametrize("suite", ["kernels", "models", "tuner"])
def test_dry_run_says_that_it_is_no_speed(suite, green, capsys):
    session = green()
    module = import_module(f"benchmarks.gpu.{suite}")
    assert module.run(session) == 0
    printed = capsys.readouterr().out
    assert "no speeds" in printed
    found = json.loads((session.folder / f"{module.SUITE}.json").read_text())
    assert found["summary"]["dry"] is True
    errors = {name: cell["error"] for name, cell in found["cells"].items() if "error" in cell}
    assert not errors


@pytest.mark.slow
def test_the_four_suites_in_one_folder(child_environment, tmp_path):
    """As a card's session calls them, with every process of its own."""
    for suite in ("gpu-check", "gpu-kernels", "gpu-models", "gpu-tune"):
        command = [ROOT / "benchmarks" / "run.py", "--suite", suite, "--dry-run", "--out", tmp_path]
        done = subprocess.run(
            [sys.executable, *command], env=child_environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    files = list(tmp_path.iterdir())
    assert len(files) <= 8
    assert all(file.stat().st_size < 400_000 for file in files)


def row(p50, of_roofline=0.5, **speedups):
    spread = {"p50": p50, "p20": p50, "p80": p50}
    ratios = {name.replace("_", " "): ratio for name, ratio in speedups.items()}
    return {"graph_ms": spread, "of_roofline": of_roofline, "speedup_over": ratios}


def test_targets_take_the_worst_cell(tmp_path):
    ledger = Ledger(tmp_path / "x.json", {})
    ledger.add("product-deit_s-b64", {"rows": {"W8A8": row(1.0, 0.7, mm_bf16=1.9)}})
    ledger.add("product-deit_b-b64", {"rows": {"W8A8": row(1.0, 0.65, mm_bf16=1.5)}})
    ledger.add("product-deit_t-b64", {"rows": {"W8A8": row(1.0, 0.1, mm_bf16=0.5)}})  # K < 384
    ledger.add("block-deit_b-b1", {"rows": {"W8A8": row(1.3), "W4A8": row(1.0)}})
    lines = kernel_targets.targets_table(ledger).splitlines()
    verdicts = {line.split("|")[1].strip(): line.split("|")[2:] for line in lines[2:]}
    share, over, small = (
        verdicts[name]
        for name in (
            "int8 GEMM, share of roofline",
            "int8 GEMM over cuBLAS bf16",
            "W4A8 over W8A8 at batch 1",
        )
    )
    assert [cell.strip() for cell in share[:4]] == ["product-deit_b-b64", "0.60", "0.65", "yes"]
    assert [cell.strip() for cell in over[:4]] == ["product-deit_b-b64", "1.60", "1.50", "no"]
    assert [cell.strip() for cell in small[:4]] == ["block-deit_b-b1", "1.20", "1.30", "yes"]


def test_whole_models_are_timed_in_both_forms_beside_every_rival(green):
    session = green()
    assert gpu_models.run(session) == 0
    cells = json.loads((session.folder / "gpu-models.json").read_text())["cells"]
    assert list(cells) == ["tiny-b1", "tiny-b1 max-autotune", "tiny-b1 torchao"]
    plain, tuned, torchao = cells.values()
    rivals = {"fp16", "bf16", "bf16 compiled"}
    assert set(plain["rows"]) == {*gpu_models.OURS, *rivals}
    assert set(tuned["rows"]) == {*gpu_models.OURS, "bf16 max-autotune"}
    assert all(set(plain["rows"][ours]["speedup_over"]) == rivals for ours in gpu_models.OURS)
    assert set(torchao["rows"]) | set(torchao["left_out"]) >= {"torchao int8", "torchao fp8"}


def test_both_forms_are_what_their_names_say():
    def launches(name):
        model = gpu_models._quantized("deit_b", name, torch.device("cpu"), 1)
        with tracing(execute=False) as trace:
            model(torch.zeros(1, 3, 224, 224))
        return len(trace.launches)

    assert {name: launches(name) for name in gpu_models.OURS} == {
        "W8A8": 4 + 7, "W8A8 token": 4 + 9, "W4A8": 4 + 7, "W4A8 token": 4 + 9, "W4A4": 4 + 7
    }  # fmt: skip


def test_every_model_and_batch_has_its_turn_and_the_long_ones_are_last(dry_session):
    session = dry_session()
    session.dry = False
    names = [name for name, _ in gpu_models.cells(session)]
    models = ("deit_t", "deit_s", "deit_b", "vit_l")
    assert set(names[:16]) == {f"{model}-b{batch}" for model in models for batch in (1, 8, 64, 256)}
    assert names[:3] == ["deit_b-b1", "deit_b-b64", "deit_b-b256"]
    assert names[16:] == [
        f"deit_b-b{batch} {what}" for batch in (64, 1) for what in ("max-autotune", "torchao")
    ]


def test_targets_of_models_are_over_the_strongest_rival_of_any_cell(tmp_path):
    ledger = Ledger(tmp_path / "x.json", {})
    ledger.add("deit_b-b1", {"rows": {"W8A8": row(1.0, bf16=2.0), "W4A8": row(1.0, bf16=2.5)}})
    ledger.add(
        "deit_b-b1 max-autotune",
        {"rows": {"W8A8": row(1.0, max_autotune=1.4), "W4A8": row(1.0, max_autotune=1.2)}},
    )
    ledger.add("deit_b-b64", {"rows": {"W8A8": row(1.0, bf16=1.7)}})
    ledger.add("deit_s-b256", {"rows": {"W8A8": row(1.0, bf16=9.0)}})
    assert model_targets.best_of(ledger, "deit_b-b1") == (1.4, "W8A8", "max autotune")
    lines = [line.split(" | ") for line in model_targets.targets_table(ledger).splitlines()[2:]]
    assert [[cell.strip("| ") for cell in line] for line in lines] == [
        ["deit_b-b1", "1.30", "1.40", "W8A8", "max autotune", "yes"],
        ["deit_b-b64", "1.80", "1.70", "W8A8", "bf16", "no"],
        ["deit_b-b256", "1.80", "not measured", "-", "-", "-"],
    ]


def test_a_roofline_is_the_larger_of_two_times():
    roofline = gpu_timing.Roofline(bytes_a_second=4e12, operations_a_second=1.6e15)
    assert roofline.floor_ms(8_000_000, 1) == pytest.approx(0.002)
    assert roofline.floor_ms(8, 16 * 10**12) == pytest.approx(10.0)


def test_a_rival_that_fails_is_left_out_with_its_reason():
    def fail():
        raise RuntimeError("self.size(0) needs to be greater than 16\nmore")

    calls = {"good": lambda: torch.ones(1), "bad": fail}
    found, left_out = gpu_timing.time_candidates(calls, torch.device("cpu"), dry=True)
    assert list(found) == ["good"]
    assert left_out == {"bad": "RuntimeError: self.size(0) needs to be greater than 16"}


def test_forced_tiles_are_taken_and_questions_kept():
    case = kernel_cases.Case("proj", "tiny", 1, "W4A8")
    call = case.make(torch.device("cpu"))
    with tuner.forced(None) as asked:
        expected = call("triton")
    assert [(q.kernel, q.m, q.n, q.k) for q in asked] == [("linear-w4a8", 5, 64, 64)]
    with tuner.forced(OTHER) as asked:
        assert torch.equal(call("triton"), expected)
        assert tiles.choose("linear-w8a8", 5, 64, 64, 80) == OTHER
    assert asked[0].own == tiles.choose("linear-w4a8", 5, 64, 64, 80)


def test_a_tile_that_splits_heads_is_unfit():
    with tuner.forced(SMALL), pytest.raises(tuner.UnfitError):
        tiles.choose("qkv-w8a8", 5, 384, 64, 80, unit_n=128)


def test_a_tile_with_a_wrong_result_never_wins(green, monkeypatch):
    right = fused.linear_residual

    def wrong_with_other(*arguments):
        y = right(*arguments)
        return y + 1 if tiles.choose("linear-w8a8", 5, 64, 64, 80) == OTHER else y

    monkeypatch.setattr(fused, "linear_residual", wrong_with_other)
    case = kernel_cases.Case("proj", "tiny", 1, "W8A8")
    found = tuner.tune(case, green(), lambda work, jobs: [], tried=[SMALL, OTHER])
    assert found["dropped"] == {"a wrong result": 1}
    assert Tile(**found["tile"]) != OTHER


@pytest.mark.slow
def test_tiles_are_compiled_by_other_processes():
    """A job travels to a process of its own and comes back done; what fails there comes back as an error."""
    case = kernel_cases.Case("proj", "tiny", 1, "W4A8")
    unfit = kernel_cases.Case("qkv", "tiny", 1, "W8A8"), Tile(16, 16, 64, 4, 3)
    with compiling_ahead.compiling_ahead(1) as ahead:
        jobs = ahead(tuner.compile_tile, [(case, SMALL, "cpu"), (*unfit, "cpu")])
        assert jobs[0].result(timeout=120) is None
        assert type(jobs[1].exception(timeout=120)).__name__ == "UnfitError"


def test_no_workers_compile_nothing():
    assert compiling_ahead.worker_count("cpu") == 0
    assert 1 <= compiling_ahead.worker_count("cuda") <= 12
    with compiling_ahead.compiling_ahead(0) as ahead:
        assert ahead(print, [("nothing",)]) == []


def test_candidates_are_valid_and_bounded():
    few, many = (tuner.candidates(kernel_cases.Case("fc2", "deit_s", b, "W8A8")) for b in (1, 64))
    tried = [*few, *many]
    assert len(few) == len(set(few))
    assert 20 <= len(many) < len(few) <= 80
    assert {t.splits for t in many} == {1}
    assert {t.splits for t in few} == {1, 2, 3, 4, 8}
    assert all(8 <= t.block_m * t.block_n // (32 * t.warps) <= 128 for t in tried)


def test_the_written_table_is_read_and_the_nearest_m_wins(green, tmp_path, monkeypatch):
    session = green()
    ledger = session.open("gpu-tune")
    for m, tile in ((197, SMALL), (12608, OTHER)):
        asked = {"kernel": "linear-w8a8", "m": m, "n": 384, "k": 384}
        fields = {name: getattr(tile, name) for name in tile.__slots__}
        ledger.add(f"m{m}", {"asked": asked, "tile": fields, "us": 1.0})
    monkeypatch.setattr(tiles, "TABLES", tmp_path / "tuned")
    (tmp_path / "tuned").mkdir()
    table = tuner.tuned_table(ledger, "NVIDIA H200")
    (tmp_path / "tuned" / "nvidia-h200.json").write_text(json.dumps(table))
    chosen = [tiles.choose("linear-w8a8", m, 384, 384, 90, card="NVIDIA H200") for m in (300, 9000)]
    assert chosen == [SMALL, OTHER]


def test_a_dry_run_leaves_the_tree_alone(green):
    session = green()
    written = tuner.write_table(session.open("gpu-tune"), session, finished=True)
    assert [path.parent for path in written] == [session.folder]


@pytest.mark.cuda
def test_timing_on_the_card():
    """A graph of many calls and do_bench agree on a kernel that is long enough for both."""
    x = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    found, left_out = gpu_timing.time_candidates(
        {"mm": lambda: torch.mm(x, x)}, x.device, dry=False
    )
    assert not left_out
    assert found["mm"].graph.median == pytest.approx(found["mm"].cold.median, rel=0.5)
