"""Each kernel of a DeiT block and the whole block, beside their rivals and the measured roofline of the card."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.cases.kernels import KERNELS, SCHEMES, Case, block_cases
from benchmarks.cases.models import random_vit
from benchmarks.gpu.ledger import Ledger
from benchmarks.gpu.rivals import block_rivals, rivals_of
from benchmarks.gpu.session import DONE, UNFINISHED, Session, Work
from benchmarks.gpu.targets import targets_table
from benchmarks.gpu.timing import Measured, Roofline, measure_roofline, time_candidates
from qvit.models.integer import Integer

SUITE = "gpu-kernels"
# What the project is judged by comes first, so that a deadline cuts the least of it.
_ORDER = (
    ("deit_s", 64), ("deit_b", 1), ("deit_b", 64), ("deit_s", 1), ("deit_t", 64), ("deit_b", 256),
    ("deit_s", 256), ("deit_s", 8), ("deit_b", 8), ("deit_t", 1), ("deit_t", 256), ("deit_t", 8),
)  # fmt: skip
_DRY_ORDER = (("tiny", 1),)
_ROOFLINE = "roofline"


def run(session: Session) -> int:
    """Measure what is not measured yet; exit code."""
    session.require_green_check()
    ledger = session.open(SUITE)
    left = session.run(ledger, cells(session, ledger))
    if not left:
        session.close(ledger, {"cells": len(ledger.cells)})
    print(table(ledger))
    return UNFINISHED if left else DONE


def cells(session: Session, ledger: Ledger) -> Iterator[tuple[str, Work]]:
    """The roofline, then for each model and batch the block and its kernels; all schemes and rivals in one cell."""
    yield _ROOFLINE, lambda: measure_roofline(session.device, dry=session.dry)
    for model, batch in _DRY_ORDER if session.dry else _ORDER:
        for kernel in ("block", *KERNELS):
            name = f"{kernel}-{model}-b{batch}"
            yield name, lambda k=kernel, m=model, b=batch: _measure(k, m, b, session, ledger)


def _measure(
    kernel: str, model: str, batch: int, session: Session, ledger: Ledger
) -> dict[str, Any]:
    make = _block_calls if kernel == "block" else _kernel_calls
    ours, work, rivals, left_out = make(kernel, model, batch, session)
    found, failed = time_candidates({**ours, **rivals}, session.device, dry=session.dry)
    seen = ledger.cells[_ROOFLINE]
    roofline = Roofline(seen["copy_bytes_a_second"], seen["int8_operations_a_second"])
    rows = {}
    for name, measured in found.items():
        row = measured.row()
        if name in work:
            row |= _against(measured, roofline, *work[name])
            row["speedup_over"] = _speedups(measured, {r: found[r] for r in rivals if r in found})
        rows[name] = row
    if session.device.type == "cuda":
        torch.cuda.empty_cache()
    return {"rows": rows, "left_out": {**left_out, **failed}}


def _against(
    measured: Measured, roofline: Roofline, bytes_moved: int, operations: int
) -> dict[str, Any]:
    floor, ms = roofline.floor_ms(bytes_moved, operations), measured.best.median
    return {
        "bytes": bytes_moved,
        "operations": operations,
        "floor_ms": float(f"{floor:.4g}"),
        "of_roofline": round(floor / ms, 4),
        "tera_operations_a_second": round(operations / ms / 1e9, 2),
    }


def _speedups(ours: Measured, rivals: dict[str, Measured]) -> dict[str, float]:
    """Medians over rounds of ratios within a round, of graph replays where both have them, else cold."""
    ratios = {}
    for name, theirs in rivals.items():
        if ours.graph is not None and theirs.graph is not None:
            ratios[name] = round(ours.graph.speedup_over(theirs.graph), 3)
        elif ours.cold is not None and theirs.cold is not None:
            ratios[name] = round(ours.cold.speedup_over(theirs.cold), 3)
    return ratios


Calls = dict[str, Callable[[], object]]
Made = tuple[Calls, dict[str, tuple[int, int]], Calls, dict[str, str]]


def _kernel_calls(kernel: str, model: str, batch: int, session: Session) -> Made:
    """Ours by scheme, their bytes and operations, the rivals, and which of those are left out."""
    ours: Calls = {}
    work = {}
    for scheme in SCHEMES:
        case = Case(kernel, model, batch, scheme)
        call = case.make(session.device)
        ours[scheme] = lambda call=call: call("triton")
        work[scheme] = (case.bytes, case.operations)
    return ours, work, *rivals_of(Case(kernel, model, batch, "W8A8"), session.device)


def _block_calls(_kernel: str, model: str, batch: int, session: Session) -> Made:
    """All launches of a block: the model's own code, its first block."""
    ours: Calls = {}
    work = {}
    execution: Any = Integer("triton")
    for scheme in SCHEMES:
        parts = block_cases(model, batch, scheme)
        block = random_vit(model, scheme, session.device, depth=1).blocks[0]
        shape = (batch, parts[0].tokens, parts[0].width)
        x = torch.randn(shape, device=session.device).to(parts[0].residual)
        ours[scheme] = lambda block=block, x=x: block(x, execution)
        work[scheme] = (sum(p.bytes for p in parts), sum(p.operations for p in parts))
    rivals = block_rivals(Case("block", model, batch, "W8A8"), session.device, dry=session.dry)
    return ours, work, rivals, {}


# The float rival that a table shows; all of them are in the JSON.
_SHOWN = ("timm block bf16 compiled", "mm bf16", "SDPA bf16", "layer_norm bf16")


def table(ledger: Ledger) -> str:
    """A row a cell: medians of graph replays in us and times the bf16 rival, by scheme; then the targets."""
    schemes = tuple(SCHEMES)
    lines = [
        f"| cell | {' us | '.join(schemes)} us | bf16 us | {' x | '.join(schemes)} x | W8A8 of roofline |",
        "| --- " * 9 + "|",
    ]
    for name, cell in ledger.cells.items():
        if "error" in cell:
            lines.append(f"| {name} | failed: {cell['error'][:80]} |")
        elif "rows" in cell:
            lines.append(_line(name, cell["rows"]))
    lines.append(targets_table(ledger))
    if ledger.identity["dry"]:
        lines.append("dry run: the interpreter on a CPU; these are no speeds")
    return "\n".join(lines)


def _line(name: str, rows: dict[str, Any]) -> str:
    rival = next((shown for shown in _SHOWN if shown in rows), "")
    times = [_microseconds(rows.get(key)) for key in (*SCHEMES, rival)]
    ratios = [
        f"{rows[s]['speedup_over'].get(rival, float('nan')):.2f}" if s in rows else "-"
        for s in SCHEMES
    ]
    share = f"{100 * rows['W8A8']['of_roofline']:.0f} %" if "W8A8" in rows else "-"
    return f"| {name} | {' | '.join((*times, *ratios, share))} |"


def _microseconds(row: dict[str, Any] | None) -> str:
    spread = row and (row["graph_ms"] or row["cold_ms"])
    return f"{1000 * spread['p50']:.1f}" if spread else "-"
