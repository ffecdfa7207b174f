"""The table of methods: a line a row, means over seeds, and what separates them."""

import statistics
from collections.abc import Sequence
from typing import Any


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown. top-1 and agreement in percent, KL in nats; +- is half the spread of the seeds."""
    lines = [
        "| images | n | training | quantizer | scheme | seeds | top-1 | 95 % interval | agreement | KL | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for cell in found:
        groups.setdefault((cell["model"], *cell["row"].values(), cell["split"]), []).append(cell)
    for cells in groups.values():
        row, images = cells[0]["row"], cells[0]["images"]
        results = [cell["result"] for cell in cells]
        low = min(r["top1_interval"][0] for r in results)
        high = max(r["top1_interval"][1] for r in results)
        seconds = statistics.mean(c["seconds"] + (c["images"].get("seconds") or 0) for c in cells)
        lines.append(
            f"| {row['images']} | {images['images']} | {row['training']} | {row['quantizer']} | {row['scheme']} "
            f"| {len(cells)} | {_mean(results, 'top1', 2)} | {low:.1f} to {high:.1f} "
            f"| {_mean(results, 'agreement', 2)} | {_mean(results, 'kl', 4)} | {seconds:.0f} |"
        )
    if found:
        lines.append("")
        lines.append(f"The float model: {found[0]['result']['float']['top1']:.2f}.")
    return "\n".join(lines)


def _mean(results: Sequence[dict[str, Any]], name: str, digits: int) -> str:
    values = [r[name] for r in results]
    text = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return text
    return f"{text} +- {(max(values) - min(values)) / 2:.{digits}f}"
