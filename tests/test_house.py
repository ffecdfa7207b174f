"""The rules of the house: style, types, rooms, a lean import, small files, a complete wheel, no
traces of a machine.
"""

import os
import re
import resource
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

ROOMS = ("qvit", "kernels", "tests", "benchmarks")
MAX_LINES = 400
MAX_FUNCTION_LINES = 60
CATCH_ALL_NAMES = {"utils", "util", "helpers", "helper", "common", "core", "misc"}


# import-linter has no `python -m`, and its script need not be on the PATH.
LINT_IMPORTS = (
    "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
)


def run(*command: str, environment: dict[str, str], cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def sources() -> Iterator[Path]:
    for room in ROOMS:
        yield from sorted((ROOT / room).rglob("*.py"))


def tree() -> Iterator[Path]:
    """Every file that would be published."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout: cannot tell the project's files from others")
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            yield ROOT / name


def test_ruff_check(child_environment):
    run("-m", "ruff", "check", "--no-cache", ".", environment=child_environment)


def test_ruff_format(child_environment):
    run("-m", "ruff", "format", "--check", "--no-cache", ".", environment=child_environment)


def test_pyright(child_environment):
    run("-m", "pyright", "--pythonpath", sys.executable, environment=child_environment)


def test_import_contracts(child_environment):
    run("-c", LINT_IMPORTS, environment=child_environment)


def test_import_contracts_notice_a_breach(child_environment, tmp_path):
    """An upward import and an undeclared room must both fail."""
    breaches = {
        "qvit/errors.py": "import qvit.recipe\n",
        "qvit/stray.py": '"""A room nobody declared."""\n',
    }
    for place, line in breaches.items():
        copy = tmp_path / place.replace("/", "_")
        copy.mkdir()
        for name in ("qvit", "kernels", "pyproject.toml"):
            subprocess.run(["cp", "-r", str(ROOT / name), str(copy / name)], check=True)
        target = copy / place
        target.write_text((target.read_text() if target.exists() else "") + line)
        environment = child_environment | {"PYTHONPATH": f"{copy}{os.pathsep}{copy / 'kernels'}"}
        done = subprocess.run(
            [sys.executable, "-c", LINT_IMPORTS],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1, f"{place}: {done.stdout}{done.stderr}"
        assert "Arrows point down" in done.stdout


HEAVY = ("torch", "timm", "triton", "numpy", "huggingface_hub", "safetensors", "torchvision")


@pytest.mark.parametrize(
    "statement",
    ["import qvit", "import qvit_kernels", "from qvit.cli import run; run(['--help'])"],
    ids=["qvit", "qvit_kernels", "help"],
)
def test_nothing_heavy_is_imported(statement, child_environment):
    code = f"import sys; {statement}; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert run("-c", code, environment=child_environment).splitlines()[-1] == "[]"


def test_lean_import_check_can_fail(child_environment):
    code = f"import sys; import numpy; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert run("-c", code, environment=child_environment).splitlines()[-1] == "['numpy']"


def test_help_is_immediate(child_environment):
    """150 ms on a desktop; a slower machine gets as much more as it needs longer to start Python and click.

    Seconds of the processor, in turns: others that want it do not count.
    """

    def seconds(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(*command, environment=child_environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    pairs = [(seconds("-c", "import click"), seconds("-m", "qvit", "--help")) for _ in range(5)]
    floor, help_ = (min(taken) for taken in zip(*pairs, strict=True))
    assert help_ < max(0.150, 4 * floor), pairs


def test_fresh_memory_is_poisoned():
    """What the `poisoned_memory` fixture promises; models on the meta device stay without storage."""
    import torch

    assert torch.empty(3).isnan().all()
    assert torch.ones(2).new_empty(4).isnan().all()
    assert torch.empty_like(torch.ones(2, dtype=torch.bfloat16)).isnan().all()
    assert torch.empty(2, dtype=torch.int8).tolist() == [0x55, 0x55]
    assert torch.empty(1, dtype=torch.int32).item() == 0x55555555
    with torch.device("meta"):
        assert torch.nn.Linear(2, 3).weight.is_meta


def test_public_names(child_environment):
    """Each public name can be had, and no other appears by accident."""
    import qvit

    assert qvit.__all__ == sorted(qvit.__all__)
    assert set(qvit._HOMES) == set(qvit.__all__) - {"__version__"}
    for name in qvit.__all__:
        assert getattr(qvit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        qvit.nonsense  # noqa: B018


def test_files_are_small():
    long = {}
    for path in sources():
        count = len(path.read_text().splitlines())
        if count > MAX_LINES:
            long[str(path.relative_to(ROOT))] = count
    assert not long, f"over {MAX_LINES} lines: {long}"


def test_functions_are_small():
    import ast

    long = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body
                # a docstring explains, it does not add to what has to be followed
                if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                    body = body[1:] or body
                count = (node.end_lineno or 0) - body[0].lineno + 1
                if count > MAX_FUNCTION_LINES:
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = count
    assert not long, f"over {MAX_FUNCTION_LINES} lines: {long}"


def test_no_catch_all_rooms():
    found = [
        str(path.relative_to(ROOT))
        for path in sources()
        if CATCH_ALL_NAMES & set(path.relative_to(ROOT).with_suffix("").parts)
    ]
    assert not found


# Written in pieces, so that this file does not contain what it looks for.
TRACES = re.compile(
    "|".join(
        [
            r"(?<![\w.])/" + r"(work|root|home)/\w",
            r"/tmp/" + r"\w",
            r"/opt/" + r"\w",
            r"files\." + r"pythonhosted\.org",
            r"pypi\." + r"org",
            r"registry\." + r"npmjs\.org",
            r"download\." + r"pytorch\.org",
        ]
    )
)


def test_no_traces_of_a_machine():
    found = []
    for path in tree():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if TRACES.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_wheel_holds_both_packages(child_environment, tmp_path):
    run(
        "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), ".",
        environment=child_environment,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        str(path.relative_to(ROOT / base))
        for base, package in [(".", "qvit"), ("kernels", "qvit_kernels")]
        for path in (ROOT / base / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {"qvit/py.typed", "qvit_kernels/py.typed"} <= expected
    packaged = {name for name in held if ".dist-info/" not in name}
    assert packaged == expected
    assert any(name.endswith("licenses/LICENSE") for name in held)
    entry = next(name for name in held if name.endswith("entry_points.txt"))
    assert "qvit = qvit.__main__:main" in zipfile.ZipFile(wheel).read(entry).decode()
