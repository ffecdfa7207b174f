"""Every op of the `triton` backend beside the reference, case by case, and whole models: what speeds wait for."""

import dataclasses
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases.kernels import SCHEMES
from benchmarks.checks import agreement
from benchmarks.checks import graphs as graph_check
from benchmarks.checks import models as model_check
from benchmarks.checks.cases import Check, checks
from benchmarks.checks.guarded_memory import guarded_memory
from benchmarks.checks.recording_fall_backs import recording
from benchmarks.gpu.compiling_ahead import compiling_ahead, worker_count
from benchmarks.gpu.ledger import Ledger
from benchmarks.gpu.session import DONE, FAILED, UNFINISHED, Session, Work

SUITE = "gpu-check"
_IMAGES = 512
_DRY_IMAGES = 1
_GRAPHS = (("W8A8", "default"), ("W8A8", "a scale a token"), ("W4A4", "default"))


def run(session: Session) -> int:
    """Check what is not checked yet; exit code."""
    ledger = session.open(SUITE)
    todo = [c.name for c in checks(dry=session.dry) if c.name not in ledger.cells]
    jobs = [(name, str(session.device), session.dry) for name in todo]
    with compiling_ahead(worker_count(session.device.type)) as ahead:
        ahead(compile_check, jobs)
        left = session.run(ledger, cells(session))
    if not left:
        counts = _count(ledger)
        passed = not _faults(ledger) and all(row["share_holds"] for row in counts["ops"].values())
        session.close(ledger, {"passed": passed, **counts})
    print(table(ledger, left))
    if left:
        return UNFINISHED
    return DONE if ledger.summary["passed"] else FAILED


def compile_check(name: str, device: str, dry: bool) -> None:
    """Run a case once on the kernels: what a process of `compiling_ahead` does."""
    check = next(check for check in checks(dry=dry) if check.name == name)
    check.call(torch.device(device))("triton")


def cells(session: Session) -> Iterator[tuple[str, Work]]:
    """The ops first, the whole models after them."""
    for check in checks(dry=session.dry):
        yield check.name, lambda check=check: examine(check, session.device)
    images = _DRY_IMAGES if session.dry else _IMAGES
    for scheme in ("W4A4",) if session.dry else SCHEMES:
        yield f"model/demo_vit {scheme}", lambda s=scheme: _examine_model(s, images, session)
    for scheme, form in (("W4A4", "default"),) if session.dry else _GRAPHS:
        name = f"graphs/deit_t {scheme}, {form}"
        yield (
            name,
            lambda s=scheme, f=form: graph_check.examine(s, f, session.device, dry=session.dry),
        )


def examine(check: Check, device: torch.device) -> dict[str, Any]:
    """One op on one set of operands: by the kernels, between canaries, and by the reference."""
    where = device if check.large else torch.device("cpu")
    expected = check.call(where)("reference")
    with recording() as composed_ops, guarded_memory() as guards:
        found = check.call(device)("triton")
        broken = guards.count_broken()
    if not check.large:
        found = _on_cpu(found)
    try:
        result = agreement.compare(found, expected)
    except ValueError as error:
        return {"fault": str(error)}
    fault = result.fault(exact=check.exact, softmax=check.op == "attention")
    if broken:
        fault = f"wrote beside {broken} of its tensors"
    elif composed_ops and check.fused:
        fault = f"was computed by the reference: {', '.join(composed_ops)}"
    return {**dataclasses.asdict(result), "exact": check.exact, "fault": fault} | (
        {"composed": composed_ops} if composed_ops else {}
    )


def _on_cpu(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.cpu()
    return tuple(_on_cpu(part) for part in result)


def _examine_model(scheme: str, images: int, session: Session) -> dict[str, Any]:
    depth = 1 if session.dry else None
    with tempfile.TemporaryDirectory() as scratch:
        return model_check.examine(
            scheme, _pictures(images), Path(scratch), session.device, depth=depth
        )


@lru_cache(maxsize=2)
def _pictures(count: int) -> Tensor:
    return model_check.render_pictures(count)


def _faults(ledger: Ledger) -> dict[str, str]:
    return {
        name: cell.get("error") or cell["fault"]
        for name, cell in ledger.cells.items()
        if cell.get("error") or cell.get("fault")
    }


def _count(ledger: Ledger) -> dict[str, Any]:
    """Over all cases of an op: cases, codes, how many are off, the share that the contract bounds."""
    rows: dict[str, dict[str, Any]] = {}
    for name, cell in ledger.cells.items():
        none = {"cases": 0, "faults": 0, "codes": 0, "off": 0}
        row = rows.setdefault(name.partition("/")[0], none)
        row["cases"] += 1
        row["faults"] += bool(cell.get("error") or cell.get("fault"))
        for key in ("codes", "off"):
            row[key] += cell.get(key, 0)
    for op, row in rows.items():
        # over many small cases, one code each would be far more than one in 100,000
        allowed = agreement.allowed_off(row["codes"], softmax=op in ("attention", "model"))
        row["share_holds"] = row["off"] <= allowed
    return {"ops": rows}


def table(ledger: Ledger, left: list[str]) -> str:
    """A row an op, then the first faults."""
    lines = ["| op | cases | faults | codes | off by one |", "| --- " * 5 + "|"]
    for op, row in _count(ledger)["ops"].items():
        counts = " | ".join(str(row[key]) for key in ("cases", "faults", "codes", "off"))
        lines.append(f"| {op} | {counts} |")
    faults = _faults(ledger)
    lines += [f"FAULT {name}: {reason}" for name, reason in list(faults.items())[:20]]
    verdict = "unfinished" if left else "passed" if ledger.summary.get("passed") else "FAILED"
    dry = " (dry run: the interpreter on a CPU, no card)" if ledger.identity["dry"] else ""
    lines.append(f"{SUITE}: {verdict}, {len(ledger.cells)} cases, {len(faults)} at fault{dry}")
    return "\n".join(lines)
