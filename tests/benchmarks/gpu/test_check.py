"""The suite that decides what may be timed: green on right kernels, red on wrong ones, in a dry run."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.checks import cases as check_cases
from benchmarks.checks import graphs
from benchmarks.gpu import check as gpu_check
from qvit.deployment import QuantViT
from qvit_kernels import composed, fused
from tests.conftest import ROOT


@pytest.fixture
def only(monkeypatch):
    """Leave only the dry cells whose name begins so."""

    def choose(*beginnings):
        every = gpu_check.cells
        monkeypatch.setattr(
            gpu_check,
            "cells",
            lambda session: (cell for cell in every(session) if cell[0].startswith(beginnings)),
        )

    return choose


def summary(folder):
    return json.loads((folder / "gpu-check.json").read_text())["summary"]


def test_dry_run_is_green(child_environment, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "run.py", "--suite", "gpu-check", "--dry-run", "--out", tmp_path],
        env=child_environment,
        capture_output=True,
        text=True,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = summary(tmp_path)
    assert found["passed"] is True
    assert found["dry"] is True
    assert {"linear", "attention", "model", "graphs", "quantize_pixels"} <= found["ops"].keys()
    assert "dry run" in done.stdout.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["gpu-check.json"]


def test_a_wrong_kernel_is_red(dry_session, only, monkeypatch):
    only("linear/", "quantize_rows/")
    right = fused.linear

    def wrong(*arguments):
        y = right(*arguments)
        y[-1, -1] = torch.nextafter(y[-1, -1], torch.tensor(torch.inf))
        return y

    monkeypatch.setattr(fused, "linear", wrong)
    session = dry_session()
    assert gpu_check.run(session) == 1
    found = summary(session.folder)
    assert found["passed"] is False
    assert found["ops"]["linear"]["faults"] == 2
    assert found["ops"]["quantize_rows"]["faults"] == 0


def test_right_kernels_are_green(dry_session, only):
    only("linear/", "quantize_rows/")
    session = dry_session()
    assert gpu_check.run(session) == 0
    assert summary(session.folder)["passed"] is True


@pytest.mark.parametrize(
    ("kernel", "fault"),
    [
        (lambda *a: composed.linear(*a), "computed by the reference: linear"),
        (lambda *a: composed.linear(*a)[..., :-1], "other shapes"),
        (lambda x, s, w, *a: torch.empty((*x.shape[:-1], w.shape[0])), "differ"),
    ],
    ids=["fall-back", "shape", "unwritten"],
)
def test_every_way_to_be_wrong_is_named(kernel, fault, monkeypatch):
    monkeypatch.setattr(fused, "linear", kernel)
    check = next(c for c in check_cases.checks(dry=True) if c.op == "linear")
    assert fault in gpu_check.examine(check, torch.device("cpu"))["fault"]


def test_a_write_beside_the_result_is_named(monkeypatch):
    right = fused.linear

    def careless(*arguments):
        y = right(*arguments)
        y.as_strided((1,), (1,), y.storage_offset() + y.numel()).fill_(0.0)
        return y

    monkeypatch.setattr(fused, "linear", careless)
    check = next(c for c in check_cases.checks(dry=True) if c.op == "linear")
    assert "wrote beside 1" in gpu_check.examine(check, torch.device("cpu"))["fault"]


def test_a_replay_that_differs_is_a_fault(monkeypatch):
    calls = []

    def fickle(model, images):
        calls.append(len(images))
        return torch.full((1,), float(len(calls) > 5))

    monkeypatch.setattr(QuantViT, "forward", fickle)
    found = graphs.examine("W4A4", "default", torch.device("cpu"), dry=True)
    assert found["fault"] == "8 replays differ from the pass"


def test_cases_cover_what_the_contract_names():
    names = [check.name for check in check_cases.checks(dry=False)]
    assert len(names) == len(set(names))
    for op in ("linear", "linear_residual", "layernorm_quantize", "quantize_rows"):
        for rows in (0, 1, 16, 17, 63, 197, 394):
            assert any(name.startswith(f"{op}/m{rows} ") for name in names), (op, rows)
    for tokens in (1, 197, 201, 257, 577, 1370):
        assert any(name.startswith(f"attention/t{tokens} ") for name in names), tokens
    for words in ("d32", "d80", "d96", "d128", "bias and mask", "group 16", "group 64", "strided"):
        assert any(words in name for name in names), words
    assert sum(name.startswith("linear_qkv/qkv-deit_b-b256") for name in names) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "check", [c for c in check_cases.checks(dry=False) if not c.large], ids=lambda c: c.name
)
def test_every_awkward_case_in_the_interpreter(check):
    found = gpu_check.examine(check, torch.device("cpu"))
    assert found["fault"] is None


@pytest.mark.cuda
def test_an_awkward_case_on_the_card(monkeypatch):
    """The rest is `benchmarks/run.py --suite gpu-check`."""
    monkeypatch.delenv("TRITON_INTERPRET")
    check = next(c for c in check_cases.checks(dry=True) if c.op == "linear")
    assert gpu_check.examine(check, torch.device("cuda"))["fault"] is None
