"""Images: a pool for every method, made once for a model, a budget and a seed, and kept outside of the repository."""

import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.cells import ROOT
from benchmarks.comparison.budgets import Budget
from benchmarks.comparison.subjects import Subject, ending
from qvit.distillation import Pool
from qvit.recipe import Synthesis
from qvit.synthesis import open_images, synthesize
from qvit.synthesis.shards import MANIFEST

SCRATCH = ROOT / "out" / "methods"
# What surrounds the terms on attention: rates, augmentation, total variation.
_SURROUNDINGS = (
    "rounds", "lr", "lr_final", "warmup", "beta1", "beta2", "weight_decay", "smoothness", "smoothness_low",
    "smoothness_high", "shift", "shift_diagonal", "flip", "colour_shift", "colour_jitter",
)  # fmt: skip


def _surroundings(method: str) -> dict[str, Any]:
    preset = Synthesis.preset(method)
    return {name: getattr(preset, name) for name in _SURROUNDINGS}


# What a method's preset is changed by, beside images, iterations and batch.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "noise": ("noise", {}),
    "psaq": ("psaq", {}),
    "mimiq": ("mimiq", {}),
    # at 64 pixels and few iterations the published weight leaves noise in the images
    "mimiq-smooth": ("mimiq", {"smoothness": 1e-3}),
    # To tell a term from what surrounds it: each method without its term, and with the other's, and MimiQ
    # without its colour jitter.
    "psaq-classes": ("psaq", {"attention": 0.0}),
    "psaq-heads": ("mimiq", _surroundings("psaq")),
    "mimiq-classes": ("mimiq", {"attention": 0.0}),
    "mimiq-entropy": ("psaq", _surroundings("mimiq")),
    "mimiq-still": ("mimiq", {"colour_shift": 0.0, "colour_jitter": 0.0}),
    "sardfq": ("sardfq", {}),
    "bns": ("bns", {}),
    "acq": ("acq", {}),
    # the generator told the class alone (GDFQ's), and told nothing
    "acq-label": ("acq", {"condition": "label", "centres": 0.0, "pairs": 0.0}),
    "acq-unconditional": ("acq", {"condition": "none", "centres": 0.0, "pairs": 0.0}),
}


def settings_of(method: str, budget: Budget) -> Synthesis:
    """A method's preset within a budget."""
    name, changes = VARIANTS[method]
    preset = Synthesis.preset(name)
    counts: dict[str, Any] = {"images": budget.images, "batch": min(budget.batch, budget.images)}
    if preset.optimised and budget.iterations:
        counts["iterations"] = max(budget.iterations, preset.rounds)
    return Synthesis.preset(name, **counts, **changes)


def pool_of(
    subject: Subject, method: str, budget_name: str, budget: Budget, seed: int
) -> tuple[Pool, dict[str, Any]]:
    """The images, and how they were made. `method` may be real-N: training images, another N of them for each seed."""
    kind, _, count = method.partition("-")
    if kind == "real":
        return _real(subject, int(count), seed), {"method": method, "images": int(count)}
    settings = settings_of(method, budget)
    out = (
        SCRATCH
        / f"{subject.source.name}-{budget_name}"
        / f"{method}-{ending(seed, subject.device)}"
    )
    start = time.perf_counter()
    made = None
    if not _complete(out):
        made = synthesize(
            subject.source, settings, out, seed=seed, device=subject.device, progress=False
        )
        (out.parent / f"{out.name}.seconds").write_text(f"{time.perf_counter() - start:.1f}")
    spent = out.parent / f"{out.name}.seconds"
    facts = {
        "method": method,
        "images": settings.images,
        "iterations": settings.iterations,
        "seconds": float(spent.read_text()) if spent.exists() else None,
        "measures": _measures(out) if made is None else made["measures"],
        "settings": {name: getattr(settings, name) for name in settings.__dataclass_fields__},
    }
    return Pool.gather(open_images(out)), facts


def _complete(out: Path) -> bool:
    path = out / MANIFEST
    return path.is_file() and bool(json.loads(path.read_text()).get("complete"))


def _measures(out: Path) -> dict[str, Any] | None:
    """Means over batches of what the log says of finished ones."""
    finished = [line for line in open_images(out).log() if line.get("event") == "finished"]
    if not finished:
        return None
    return {
        when: {
            name: sum(line["images"] * line[when][name] for line in finished)
            / sum(line["images"] for line in finished)
            for name in finished[0][when]
        }
        for when in ("before", "after")
    }


def _real(subject: Subject, count: int, seed: int) -> Pool:
    everything = subject.real(500)
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(seed))
    images, labels = everything.take(order[:count])
    return Pool(images.half(), labels)
