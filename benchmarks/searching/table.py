"""The table of benchmarks/bits.py: KL of each allocation, and how far the found one lies below it, image by image."""

from collections import defaultdict
from typing import Any

import numpy as np

_RESAMPLES = 10_000


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, a row a scheme, seed and allocation."""
    lines = [
        "| scheme | seed | allocation | KL | less in the found one | 95 % interval | agreement | top-1 |",
        "| --- " * 8 + "|",
    ]
    judged = [cell for cell in found if "kl_each" in cell]
    trials: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for cell in judged:
        trials[cell["scheme"], cell["seed"]].append(cell)
    for (scheme, seed), cells in trials.items():
        known = {cell["allocation"]: cell for cell in cells}
        for name, cell in known.items():
            own = known.get("found-rounded" if name.endswith("-rounded") else "found")
            gain = "- | -" if own is None or own is cell else _gain(own, cell)
            lines.append(
                f"| {scheme} | {seed} | {name} | {cell['kl']:.4f} | {gain} | {cell['agreement']:.1f} % "
                f"| {cell['top1']:.1f} |"
            )
    return "\n".join(lines)


def _gain(own: dict[str, Any], other: dict[str, Any]) -> str:
    value, (low, high) = paired_difference(own["kl_each"], other["kl_each"])
    return f"{value:.4f} | {low:.4f} to {high:.4f}"


def paired_difference(
    first: list[float], second: list[float], seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Mean of second - first over the same images, and its 95 % bootstrap interval."""
    differences = np.asarray(second) - np.asarray(first)
    drawn = np.random.default_rng(seed).integers(
        len(differences), size=(_RESAMPLES, len(differences))
    )
    low, high = np.percentile(differences[drawn].mean(1), [2.5, 97.5])
    return float(differences.mean()), (float(low), float(high))
