"""Orders: what publications say comes out above what, judged by the same images under both rows of a claim.

An interval of 500 images is as wide as most differences between methods; the difference image by image is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.searching.table import paired_difference


@dataclass(frozen=True, slots=True)
class Order:
    """A claim: rows of images and training, the one that should be better first; both under one quantizer."""

    claim: str
    better: tuple[str, str]
    worse: tuple[str, str]


_PSAQ, _MIMIQ = "PSAQ-ViT above noise", "MimiQ above noise"
_GENERATOR = "ACQ's generator above an unconditional one"
_CENTRES = "ACQ's generator above one told the class alone"
_WHOLE = "MimiQ above PSAQ-ViT, whole methods"
_IMAGES = "MimiQ above PSAQ-ViT, images alone"
_TERMS = "MimiQ's term above PSAQ-ViT's, the rest as PSAQ-ViT has it"
_TRAINED = "distillation above calibration"
_LABELS = "inundation above labels"
VIT_ORDERS = (
    Order(_PSAQ, ("psaq", "none"), ("noise", "none")),
    Order(_PSAQ, ("psaq", "kl"), ("noise", "kl")),
    Order(_MIMIQ, ("mimiq", "none"), ("noise", "none")),
    Order(_MIMIQ, ("mimiq", "kl"), ("noise", "kl")),
    Order(_WHOLE, ("mimiq", "mimiq"), ("psaq", "none")),
    Order(_IMAGES, ("mimiq", "none"), ("psaq", "none")),
    Order(_IMAGES, ("mimiq", "kl"), ("psaq", "kl")),
    Order(_TERMS, ("psaq-heads", "none"), ("psaq", "none")),
    Order(_TERMS, ("psaq-heads", "kl"), ("psaq", "kl")),
    Order("MimiQ's term above none, likewise", ("psaq-heads", "none"), ("psaq-classes", "none")),
    Order("MimiQ's term above none, likewise", ("psaq-heads", "kl"), ("psaq-classes", "kl")),
    *(Order(_TRAINED, (m, "kl"), (m, "none")) for m in ("noise", "psaq", "mimiq", "real-32")),
    Order(_LABELS, ("mimiq", "kl-inundation"), ("mimiq", "kl-classes")),
    Order(_LABELS, ("mimiq", "ait"), ("mimiq", "kl-classes")),
    Order("KL alone above labels", ("mimiq", "kl"), ("mimiq", "kl-classes")),
    Order("MaskAQ above MimiQ", ("maskaq", "own"), ("mimiq", "mimiq")),
    Order("PSAQ-ViT V2 above PSAQ-ViT", ("psaq-v2", "own"), ("psaq", "none")),
)
RESNET_ORDERS = (
    Order("statistics above noise", ("bns", "none"), ("noise", "none")),
    Order("statistics above noise", ("bns", "kl"), ("noise", "kl")),
    Order(_GENERATOR, ("acq", "none"), ("acq-unconditional", "none")),
    Order(_GENERATOR, ("acq", "kl"), ("acq-unconditional", "kl")),
    Order(_CENTRES, ("acq", "none"), ("acq-label", "none")),
    Order(_CENTRES, ("acq", "kl"), ("acq-label", "kl")),
    *(Order(_TRAINED, (m, "kl"), (m, "none")) for m in ("noise", "bns", "acq", "real-32")),
    Order(_LABELS, ("bns", "kl-inundation"), ("bns", "kl-classes")),
    Order(_LABELS, ("bns", "ait"), ("bns", "kl-classes")),
    Order("KL alone above labels", ("bns", "kl"), ("bns", "kl-classes")),
)


def orders_table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown, a line for each claim, quantizer and scheme that some seed has both rows of.

    Differences are in favour of the row that should be better: less KL in nats, more top-1 in points; each seed's, and
    their mean with the 95 % bootstrap interval over images, from the seeds whose cells say what came of each image.
    """
    lines = []
    known = {_key(cell): cell for cell in found}
    places = dict.fromkeys((key[0], *key[3:-1]) for key in known)  # in the order of the cells
    for model, quantizer, scheme, split in places:
        seeds = sorted({key[-1] for key in known})
        for order in RESNET_ORDERS if any(key[1] == "bns" for key in known) else VIT_ORDERS:
            sides = (order.better, order.worse)
            keys = [[(model, *s, quantizer, scheme, split, n) for s in sides] for n in seeds]
            pairs = [(known[a], known[b]) for a, b in keys if a in known and b in known]
            if pairs:
                (images, training), (others, otherwise) = sides
                lines.append(
                    f"| {order.claim} | {images}, {training} | {others}, {otherwise} | {quantizer} | {scheme} "
                    f"| {_differences(pairs)} |"
                )
    if not lines:
        return ""
    head = "| claim | better | worse | quantizer | scheme | less KL, each seed | paired | more top-1 | paired |"
    return "\n".join([head, "| --- " * 9 + "|", *lines])


def _key(cell: dict[str, Any]) -> tuple[Any, ...]:
    row = cell["row"]
    names = row["images"], row["training"], row["quantizer"], row["scheme"]
    return (cell["model"], *names, cell["split"], cell["seed"])


def _differences(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    less = [b["result"]["kl"] - a["result"]["kl"] for a, b in pairs]
    more = [a["result"]["top1"] - b["result"]["top1"] for a, b in pairs]
    each = [(a["each"], b["each"]) for a, b in pairs if "each" in a and "each" in b]
    kls = _paired([(a["kl"], b["kl"]) for a, b in each], 3)
    hits = _paired([(_percents(b["right"]), _percents(a["right"])) for a, b in each], 1)
    told_less, told_more = ", ".join(f"{v:.3f}" for v in less), ", ".join(f"{v:.1f}" for v in more)
    return f"{told_less} | {kls} | {told_more} | {hits}"


def _percents(right: str) -> list[float]:
    return [100.0 * int(hit) for hit in right]


def _paired(seeds: Sequence[tuple[list[float], list[float]]], digits: int) -> str:
    """Second - first, of what each image has in the mean over seeds; with its interval over images."""
    if not seeds:
        return "-"
    first, second = np.mean(np.asarray(seeds), 0).tolist()
    value, (low, high) = paired_difference(first, second)
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
