"""The kernels compiled for cards that are not here, in processes of their own: this one interprets them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "static_kernels.py"


@pytest.fixture
def compile_kernels(child_environment):
    environment = {k: v for k, v in child_environment.items() if k != "TRITON_INTERPRET"}

    def run(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(SCRIPT), *map(str, arguments)],
            env=environment | more,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def known():
    """The table of the installed Triton."""
    version = subprocess.run(
        [sys.executable, "-c", "import triton; print(*triton.__version__.split('.')[:2], sep='.')"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    path = ROOT / "benchmarks" / "results" / "static" / f"triton-{version}.json"
    if not path.is_file():
        pytest.skip(f"no table for Triton {version}")
    return json.loads(path.read_text())


ONE = ("--sample", "--kernel", "ln_quant", "--target", "80")


def test_sample_agrees_with_the_table(compile_kernels, known):
    """Also under TRITON_INTERPRET, which the command must not be fooled by."""
    done = compile_kernels("--sample", "--target", "80,90", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 at fault, 0 worse" in done.stdout


@pytest.mark.slow
def test_whole_matrix_agrees_with_the_table(compile_kernels, known):
    done = compile_kernels()
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_rise_of_more_than_a_tenth_fails(compile_kernels, known, tmp_path):
    (key,) = [
        key
        for key in known
        if key.endswith("/sm_80") and "12608x384-float32-hadamard64-bits8" in key
    ]
    columns = ("per_unit", "registers", "shared")
    table = tmp_path / "table.json"
    for share, code in ((0.95, 0), (0.89, 1)):
        doctored = known[key] | {column: known[key][column] * share for column in columns}
        table.write_text(json.dumps(known | {key: doctored}))
        done = compile_kernels(*ONE, "--table", table)
        assert done.returncode == code, done.stdout + done.stderr
        assert [f"{column} {doctored[column]}" in done.stdout for column in columns] == [
            bool(code)
        ] * 3


def test_a_case_that_the_table_lacks_fails_until_it_is_written(compile_kernels, tmp_path):
    table = tmp_path / "new" / "table.json"
    done = compile_kernels(*ONE, "--table", table)
    assert done.returncode == 1
    assert "not in the table" in done.stdout
    assert compile_kernels(*ONE, "--table", table, "--write").returncode == 0
    assert compile_kernels(*ONE, "--table", table).returncode == 0
    (row,) = json.loads(table.read_text()).values()
    assert row["instructions"] > 500
    assert row["registers"] > 32
    assert row["stack"] == row["local"] == row["loop"] == row["mma_count"] == 0


def test_unknown_target_is_refused(compile_kernels):
    done = compile_kernels("--target", "75")
    assert done.returncode == 2
    assert "75" in done.stderr


FAULTS = """
import sys
sys.path.insert(0, {root!r})
import torch, triton, triton.language as tl
from qvit_kernels.launching import Launch
from benchmarks.static.cases import expected_opcode, on_meta
from benchmarks.static.compilation import as_row, figures_of
from benchmarks.static_kernels import faults_of

@triton.jit
def product(a, b, c, BM: tl.constexpr, BN: tl.constexpr, INT8: tl.constexpr):
    i, j, k = tl.arange(0, BM)[:, None], tl.arange(0, BN)[:, None], tl.arange(0, 32)[None, :]
    x, w = tl.load(a + i * 32 + k), tl.load(b + j * 32 + k)
    if INT8:
        y = tl.dot(x, w.T)
    else:
        y = tl.sum(x[:, None, :].to(tl.int32) * w[None, :, :].to(tl.int32), 2)
    tl.store(c + i * BN + tl.arange(0, BN)[None, :], y)

def launch(rows, int8, warps=4, **options):
    tensors = [on_meta(256, 32, dtype=torch.int8) for _ in range(2)] + [on_meta(256, 256, dtype=torch.int32)]
    names = dict(zip("abc", tensors))
    return Launch(product, (1,), names | dict(BM=rows, BN=64, INT8=int8), warps, options=options)

def found(launch, capability):
    return faults_of(launch, capability, as_row(figures_of(launch, capability)))

assert found(launch(64, True), 80) == found(launch(64, True), 90) == found(launch(16, True), 90) == []
(missing,) = found(launch(16, False, maxnreg=255), 80)
assert "IMMA" in missing, missing
(spilled,) = found(launch(128, True, maxnreg=32), 80)
assert "spills" in spilled, spilled
row = as_row(figures_of(launch(64, True), 80))
(big,) = faults_of(launch(64, True), 86, row | dict(shared=99 * 1024 + 1))
assert "shared memory" in big, big
assert not faults_of(launch(64, True), 80, row | dict(shared=99 * 1024 + 1))
assert expected_opcode(launch(64, True), 100, (3, 7)) == "IMMA"
assert expected_opcode(launch(64, True), 100, (3, 8)) == "UTCIMMA"
assert expected_opcode(launch(32, True), 100, (3, 8)) == "IMMA"
assert expected_opcode(launch(64, True, warps=2), 90, (3, 9)) == "IMMA"
print("done")
"""


def test_faults_are_found(child_environment, tmp_path):
    """Kernels without the tensor-core instruction, with spills, with too much shared memory."""
    script = tmp_path / "faults.py"
    script.write_text(FAULTS.format(root=str(ROOT)))
    environment = {k: v for k, v in child_environment.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "done", done.stderr


COVERED = """
import json, sys
sys.path.insert(0, {root!r})
from benchmarks.static.cases import signature_of
from benchmarks.static.models import BATCHES, launches_of
from benchmarks.static_kernels import FAMILIES, SHARED_LIMIT, TABLE, selected

asked = set(selected(list(FAMILIES), list(SHARED_LIMIT), False))
known = set(json.loads(TABLE.read_text()))
few = "W3A8", "W3A3", "W2A4", "W2A2"
missing = [key for key in asked - known if not any(f"-{{name}}-" in key for name in few)]
assert not missing and known <= asked, sorted(missing) + sorted(known - asked)
for name in ("demo_vit", "deit_b", *few[1:]):
    assert any(name in key for key in asked), name
for target in SHARED_LIMIT:  # W3A8 has the grids of W4A8, and so no binary, and no line, of its own
    for batch in BATCHES:
        three, four = (
            {{signature_of(launch) for launch in launches_of("deit_b", scheme, batch, target).values()}}
            for scheme in ("W3A8", "W4A8")
        )
        assert three and three <= four, (target, batch)
print("done")
"""


def test_every_launch_of_the_models_is_in_the_table(child_environment, known, tmp_path):
    """DeiT-T, -S and -B and the packaged model, one image and 64, the default recipes at 8 and 4 bits.

    Those from 3 bits down are compiled as time allows, and `--missing` names the rest.
    """
    script = tmp_path / "covered.py"
    script.write_text(COVERED.format(root=str(ROOT)))
    environment = {k: v for k, v in child_environment.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "done", done.stderr


NEIGHBOURS = """
import sys
sys.path.insert(0, {root!r})
import re
import torch
from benchmarks.static.cases import on_meta
from benchmarks.static.compilation import compile_launch
from qvit_kernels import gemm_plans

for capability in (90, 100):
    for k in (96, 160, 192):
        x, w = on_meta(6272, k, dtype=torch.int8), on_meta(384, k // 2, dtype=torch.uint8)
        product = x, on_meta(6272, 1), w, on_meta(384), on_meta(384, k // 32, dtype=torch.int8), None
        for launch, _ in (
            gemm_plans.plan_linear(*product, capability=capability),
            gemm_plans.plan_gelu_quantize(*product, "none", None, 0, 8, 128, False, capability=capability),
        ):
            text = compile_launch(launch, capability).asm["ttgir"]
            (unpacked,) = set(re.findall(r"lop3.*-> tensor<\\d+x\\d+xi8, #(\\S*?)[<>]", text))
            layouts = dict(re.findall(r"^#(\\w+) = (.*)", text, re.M))
            layout = layouts.get(unpacked, unpacked)
            # a thread holds four neighbours of a row and more
            four = r"PerThread = \\[1, (4|8|16)\\]|register = \\[\\[0, 1\\], \\[0, 2\\]|dot_op"
            assert re.search(four, layout), layout
print("done")
"""


def test_bytes_that_share_a_multiplier_are_neighbours(child_environment, tmp_path):
    """What `gemm_int4.widen_times` depends on and no interpreter shows, also in rows that end in half a block."""
    script = tmp_path / "neighbours.py"
    script.write_text(NEIGHBOURS.format(root=str(ROOT)))
    environment = {k: v for k, v in child_environment.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "done", done.stderr
