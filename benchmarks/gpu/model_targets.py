"""What whole models are to reach on an H200, held against what `gpu-models` measured."""

from benchmarks.gpu.ledger import Ledger

# DeiT-B, the best of our schemes over the best of the rivals.
_WANTED = {"deit_b-b1": 1.3, "deit_b-b64": 1.8, "deit_b-b256": 1.8}


def targets_table(ledger: Ledger) -> str:
    """A row a target: what was wanted of which batch, which of ours came closest, and over whom."""
    lines = ["| target | wanted | found | ours | over | met |", "| --- " * 6 + "|"]
    for cell, wanted in _WANTED.items():
        found = best_of(ledger, cell)
        if found is None:
            lines.append(f"| {cell} | {wanted:.2f} | not measured | - | - | - |")
            continue
        ratio, ours, rival = found
        met = "yes" if ratio >= wanted else "no"
        lines.append(f"| {cell} | {wanted:.2f} | {ratio:.2f} | {ours} | {rival} | {met} |")
    return "\n".join(lines)


def best_of(ledger: Ledger, cell: str) -> tuple[float, str, str] | None:
    """Of a model and batch: the largest of our ratios, each over its strongest rival in all cells; whose, and over
    whom. None without a rival.
    """
    ratios: dict[str, dict[str, float]] = {}
    for name, found in ledger.cells.items():
        if name.partition(" ")[0] != cell:
            continue
        for ours, row in found.get("rows", {}).items():
            ratios.setdefault(ours, {}).update(row.get("speedup_over", {}))
    worst = [
        (ratio, ours, rival)
        for ours, over in ratios.items()
        if over
        for rival, ratio in [min(over.items(), key=lambda item: item[1])]
    ]
    return max(worst, default=None)
