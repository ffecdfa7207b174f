"""Compile the kernels for every supported GPU, without one, and hold what comes out against a table.

    python benchmarks/static_kernels.py [--sample] [--kernel NAME] [--target 80,90] [--missing] [--write]

Fails where a kernel spills registers, wants more shared memory than the card has, misses its tensor-core instruction,
or takes over 10 % more instructions per matrix product (per element without one), registers or shared memory than the
table says. A table is for one version of Triton: results/static/triton-<major>.<minor>.json; `--write` renews it, line
by line, and `--missing` goes on where that was interrupted. The whole takes a quarter of an hour.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # before triton is imported: it would compile nothing
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "kernels"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click
import triton
from triton.errors import TritonError

from benchmarks.cells import ROOT, write_whole
from benchmarks.static.cases import (
    FAMILIES,
    cases_of,
    expected_opcode,
    kernel_file,
    signature_of,
)
from benchmarks.static.compilation import Figures, as_row, figures_of
from benchmarks.static.models import model_launches
from qvit_kernels.launching import Launch

_MAJOR, _MINOR = triton.__version__.split(".")[:2]
VERSION = (int(_MAJOR), int(_MINOR))
TABLE = ROOT / "benchmarks" / "results" / "static" / f"triton-{VERSION[0]}.{VERSION[1]}.json"

# Shared memory that one program can have, bytes (CUDA C programming guide, technical specifications).
SHARED_LIMIT = {
    80: 163 * 1024,
    86: 99 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
    100: 227 * 1024,
    120: 99 * 1024,
}
WATCHED = ("per_unit", "registers", "shared")
TOLERANCE = 1.1

Row = dict[str, Any]


def faults_of(launch: Launch, capability: int, row: Row) -> list[str]:
    """What is wrong with a compiled kernel whatever the table says."""
    found = []
    if row["stack"] or row["local"]:
        found.append(f"spills: {row['stack']} bytes of stack, {row['local']} loads and stores")
    if row["shared"] > SHARED_LIMIT[capability]:
        found.append(f"shared memory {row['shared']} above the card's {SHARED_LIMIT[capability]}")
    expected = expected_opcode(launch, capability, VERSION)
    if row["mma"].partition(".")[0] != expected:
        found.append(f"matrix instruction {row['mma'] or 'none'}, expected {expected or 'none'}")
    return found


def regressions_of(row: Row, before: Row | None) -> list[str]:
    """What rose by more than a tenth against the table; a case that the table lacks is one finding."""
    if before is None:
        return ["not in the table (--write adds it)"]
    return [
        f"{name} {before[name]} -> {row[name]}"
        for name in WATCHED
        if row[name] > before[name] * TOLERANCE
    ]


def selected(kernels: list[str], targets: list[int], sample: bool) -> dict[str, tuple[int, Launch]]:
    """Key in the table, capability and launch of everything to compile.

    First the cases, then the launches of whole models that no case and no other model shares a binary with.
    """
    found: dict[str, tuple[int, Launch]] = {}
    for target in targets:
        seen = set()
        for kernel in kernels:
            for case in cases_of(kernel):
                launch = case.launch(target)
                seen.add(signature_of(launch))
                if case.sample or not sample:
                    found[f"{kernel}/{case.name}/sm_{target}"] = target, launch
        for name, launch in () if sample else model_launches(target):
            kernel, signature = kernel_file(launch), signature_of(launch)
            if kernel in kernels and signature not in seen:
                seen.add(signature)
                found[f"{kernel}/{name}/sm_{target}"] = target, launch
    return found


def line_of(key: str, figures: Figures, findings: list[str]) -> str:
    """A line of the printed table."""
    numbers = (
        f"{figures.instructions:6d} {figures.loop:6d} {figures.mma_count:5d} {figures.per_unit:8.3f} "
        f"{figures.registers:5d} {figures.shared:7d}  {figures.mma:<26}"
    )
    return f"{key:64}{numbers}{'; '.join(findings)}".rstrip()


def write_table(path: Path, rows: dict[str, Row]) -> None:
    """Write the rows, one a line, sorted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(rows[key])}" for key in sorted(rows))
    write_whole(path, f"{{\n{lines}\n}}\n")


def parse_targets(text: str) -> list[int]:
    """ "80,90" -> [80, 90]."""
    targets = [int(part) for part in text.split(",")]
    if unknown := [target for target in targets if target not in SHARED_LIMIT]:
        raise click.BadParameter(f"targets are {', '.join(map(str, SHARED_LIMIT))}, got {unknown}")
    return targets


@click.command()
@click.option("--sample", is_flag=True, help="Only the cases marked so.")
@click.option("--kernel", type=click.Choice(list(FAMILIES)), help="Only the cases of this kernel.")
@click.option("--target", default=",".join(map(str, SHARED_LIMIT)), help="Capabilities, as 80,90.")
@click.option("--table", type=click.Path(path_type=Path), default=TABLE, help="Another table.")
@click.option("--missing", is_flag=True, help="Only what the table lacks.")
@click.option("--write", is_flag=True, help="Write what is found into the table.")
def main(
    sample: bool, kernel: str | None, target: str, table: Path, missing: bool, write: bool
) -> None:
    """Compile, count, compare."""
    targets = parse_targets(target)
    known = json.loads(table.read_text(encoding="utf-8")) if table.is_file() else {}
    rows: dict[str, Row] = {}
    faults = regressions = 0
    print(f"{'case':64} instr   loop   mma per unit  regs  shared  mnemonic")
    kernels = [kernel] if kernel else list(FAMILIES)
    asked = selected(kernels, targets, sample)
    for key, (capability, launch) in asked.items():
        if missing and key in known:
            continue
        try:
            figures = figures_of(launch, capability)
        except (TritonError, RuntimeError) as error:  # of the other kernels one still wants to know
            print(f"{key}: {type(error).__name__}: {error}", flush=True)
            faults += 1
            continue
        rows[key] = as_row(figures)
        wrong = faults_of(launch, capability, rows[key])
        worse = [] if write else regressions_of(rows[key], known.get(key))
        faults, regressions = faults + bool(wrong), regressions + bool(worse)
        print(line_of(key, figures, wrong + worse), flush=True)
        if write:
            write_table(table, known | rows)
    whole = not sample and kernel is None and targets == list(SHARED_LIMIT)
    stale = known.keys() - asked.keys() if whole else set()
    if stale and write:
        write_table(table, {key: row for key, row in (known | rows).items() if key in asked})
    elif stale:
        print("in the table but no longer a case:", *sorted(stale), sep="\n  ")
        regressions += len(stale)
    print(
        f"{len(rows)} compiled with Triton {triton.__version__}: {faults} at fault, {regressions} worse"
    )
    sys.exit(1 if faults or regressions or not (rows or missing) else 0)


if __name__ == "__main__":
    main()
