"""The table of methods: a line a row, means over seeds, and what separates them."""

import statistics
from collections.abc import Sequence
from typing import Any


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown. top-1 and agreement in percent, KL in nats; +- is half the spread of the seeds, and the interval
    reaches over those of all seeds.
    """
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
            f"| {_name(row['images'])} | {images['images']} | {row['training']} | {row['quantizer']} | {row['scheme']} "
            f"| {', '.join(str(c['seed']) for c in cells)} | {_mean(results, 'top1', 2)} | {low:.1f} to {high:.1f} "
            f"| {_mean(results, 'agreement', 2)} | {_mean(results, 'kl', 4)} | {seconds:.0f} |"
        )
    if found:
        lines.append("")
        lines.append(f"The float model: {found[0]['result']['float']['top1']:.2f}.")
    return "\n".join(lines)


def is_reconstructed(method: str) -> bool:
    """Whether the formulas of a method, of images or of a recipe `paper-...`, are not public, and so ours."""
    return method.removeprefix("paper-").startswith(("acq", "psaq-v2"))


def _name(images: str) -> str:
    """Of a row, with a word where the method is not the publication's own."""
    return f"{images} (our reconstruction)" if is_reconstructed(images) else images


def _mean(results: Sequence[dict[str, Any]], name: str, digits: int) -> str:
    values = [r[name] for r in results]
    text = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return text
    return f"{text} +- {(max(values) - min(values)) / 2:.{digits}f}"
