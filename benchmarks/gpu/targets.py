"""What the kernels are to reach on an H200, held against what `gpu-kernels` measured."""

from typing import Any

from benchmarks.gpu.ledger import Ledger

_GEMM_SHARE = 0.6  # of the measured int8 rate, or of the bandwidth where that is the tighter bound
_GEMM_SPEEDUP = 1.6  # over cuBLAS bf16
_BLOCK_SPEEDUP = 1.7  # over timm's compiled bf16 block with SDPA
_SMALL_SPEEDUP = 1.2  # of W4A8 over W8A8 at batch 1 on DeiT-B
_NEVER_SLOWER = 0.98  # of W4A8 over W8A8, less what two runs of one kernel differ by

Finding = tuple[str, str, float, float]  # target, cell, wanted, found


def targets_table(ledger: Ledger) -> str:
    """A row a target: the worst cell that it is about."""
    lines = ["| target | worst cell | wanted | found | met |", "| --- " * 5 + "|"]
    worst: dict[str, Finding] = {}
    for finding in findings(ledger):
        kept = worst.get(finding[0])
        if kept is None or finding[3] / finding[2] < kept[3] / kept[2]:
            worst[finding[0]] = finding
    for target, cell, wanted, found in worst.values():
        met = "yes" if found >= wanted else "no"
        lines.append(f"| {target} | {cell} | {wanted:.2f} | {found:.2f} | {met} |")
    return "\n".join(lines) if worst else "no target has its cells measured yet"


def findings(ledger: Ledger) -> list[Finding]:
    """Every measured cell that a target is about."""
    found: list[Finding] = []
    for name, cell in ledger.cells.items():
        rows = cell.get("rows")
        if rows and "W8A8" in rows:
            found += _of_cell(name, rows)
    return found


def _of_cell(name: str, rows: dict[str, Any]) -> list[Finding]:
    kernel, model, batch = name.split("-")
    found: list[Finding] = []
    eight, four = rows["W8A8"], rows.get("W4A8")
    over = eight["speedup_over"]
    if kernel == "product" and model in ("deit_s", "deit_b") and batch in ("b64", "b256"):
        found.append(("int8 GEMM, share of roofline", name, _GEMM_SHARE, eight["of_roofline"]))
        if "mm bf16" in over:
            found.append(("int8 GEMM over cuBLAS bf16", name, _GEMM_SPEEDUP, over["mm bf16"]))
    if kernel == "block" and batch == "b64" and "timm block bf16 compiled" in over:
        ratio = over["timm block bf16 compiled"]
        found.append(("block over the compiled bf16 block", name, _BLOCK_SPEEDUP, ratio))
    if four is None or kernel in ("attention", "ln_quant"):
        return found
    ratio = _median(eight) / _median(four)
    found.append(("W4A8 never slower than W8A8", name, _NEVER_SLOWER, ratio))
    if kernel == "block" and model == "deit_b" and batch == "b1":
        found.append(("W4A8 over W8A8 at batch 1", name, _SMALL_SPEEDUP, ratio))
    return found


def _median(row: dict[str, Any]) -> float:
    return (row["graph_ms"] or row["cold_ms"])["p50"]
