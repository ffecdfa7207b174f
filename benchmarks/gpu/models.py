"""Whole models with random weights, in integers and as timm has them: milliseconds and images a second, by batch.

Ours are called as a user calls them: a QuantViT after `warmup`, so a copy in, a CUDA graph, a copy out. Rivals are
called plainly and, beside it, in a CUDA graph of their own, and held against in the form that is faster.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch

from benchmarks.cases.kernels import model_config
from benchmarks.cases.models import random_vit
from benchmarks.gpu import model_rivals
from benchmarks.gpu.compiling_ahead import compiling_ahead, worker_count
from benchmarks.gpu.ledger import Ledger
from benchmarks.gpu.model_targets import targets_table
from benchmarks.gpu.session import DONE, UNFINISHED, Session, Work
from benchmarks.gpu.timing import Call, time_passes
from qvit.deployment import QuantViT

SUITE = "gpu-models"
# Name -> scheme and form.
OURS = {
    "W8A8": ("W8A8", "default"),
    "W8A8 token": ("W8A8", "a scale a token"),
    "W4A8": ("W4A8", "default"),
    "W4A8 token": ("W4A8", "a scale a token"),
    "W4A4": ("W4A4", "default"),
}
# What the targets are about comes first, so that a deadline cuts the least of it.
_ORDER = (
    ("deit_b", 1), ("deit_b", 64), ("deit_b", 256), ("deit_s", 1), ("deit_s", 64), ("vit_l", 64), ("vit_l", 1),
    ("deit_t", 64), ("deit_t", 1), ("deit_b", 8), ("deit_s", 256), ("deit_s", 8), ("vit_l", 8), ("vit_l", 256),
    ("deit_t", 256), ("deit_t", 8),
)  # fmt: skip
_DRY_ORDER = (("tiny", 1),)
# Compiling takes most of a cell: for these, and everywhere plain and in a CUDA graph.
_COMPILED = ("-b1", "-b64", "deit_b-b256")
# Minutes of compiling each: after all others.
_LONG = (("deit_b", 64), ("deit_b", 1))


def run(session: Session) -> int:
    """Measure what is not measured yet; exit code."""
    session.require_green_check()
    ledger = session.open(SUITE)
    order = _DRY_ORDER if session.dry else _ORDER
    todo = [(m, b) for m, b in order if f"{m}-b{b}" not in ledger.cells]
    jobs = [(m, b, name, str(session.device)) for m, b in todo for name in OURS]
    with compiling_ahead(worker_count(session.device.type)) as ahead:
        ahead(compile_pass, jobs)
        left = session.run(ledger, cells(session))
    if not left:
        session.close(ledger, {"cells": len(ledger.cells)})
    print(table(ledger))
    return UNFINISHED if left else DONE


def compile_pass(model: str, batch: int, name: str, device: str) -> None:
    """Run one block and what is around it, which holds every kernel of the model: the work of a process of its own."""
    quantized = _quantized(model, name, torch.device(device), 1)
    quantized(_images(model, batch, torch.device(device)))


def cells(session: Session) -> Iterator[tuple[str, Work]]:
    """One a model and batch; then, for some, the rivals that are long in the making, beside ours again."""
    for model, batch in _DRY_ORDER if session.dry else _ORDER:
        yield f"{model}-b{batch}", lambda m=model, b=batch: _measure_plain(m, b, session)
    for model, batch in _DRY_ORDER if session.dry else _LONG:
        yield (
            f"{model}-b{batch} max-autotune",
            lambda m=model, b=batch: _measure_tuned(m, b, session),
        )
        yield f"{model}-b{batch} torchao", lambda m=model, b=batch: _measure_torchao(m, b, session)


def _measure_plain(model: str, batch: int, session: Session) -> dict[str, Any]:
    rivals = model_rivals.plain_rivals(model, batch, session)
    if f"{model}-b{batch}".endswith(_COMPILED):
        rivals["bf16 compiled"] = model_rivals.compiled_rival(model, batch, session)
    return _measure(model, batch, rivals, {}, session)


def _measure_tuned(model: str, batch: int, session: Session) -> dict[str, Any]:
    """max-autotune brings its own CUDA graph, as ours does."""
    call = model_rivals.compiled_rival(model, batch, session, "max-autotune")
    return _measure(model, batch, {}, {"bf16 max-autotune": call}, session)


def _measure_torchao(model: str, batch: int, session: Session) -> dict[str, Any]:
    rivals, left_out = model_rivals.torchao_rivals(model, batch, session)
    if not rivals:
        return {"batch": batch, "rows": {}, "left_out": left_out}
    result = _measure(model, batch, rivals, {}, session)
    result["left_out"] |= left_out
    return result


def _measure(
    model: str,
    batch: int,
    rivals: dict[str, Call],
    whole: dict[str, Call],
    session: Session,
) -> dict[str, Any]:
    """Ours and the rivals in turns. whole: rivals that are called as they are and need no CUDA graph."""
    ours = {name: _our_call(model, batch, name, session) for name in OURS}
    found, failed = time_passes({**ours, **whole}, rivals, session.device, dry=session.dry)
    others = [name for name in found if name not in OURS]
    rows = {}
    for name, timing in found.items():
        rows[name] = {
            "ms": {f"p{q}": float(f"{timing.percentile(q):.4g}") for q in (50, 20, 80)},
            "images_per_s": round(batch / timing.median * 1000, 1),
        }
        if name in OURS:
            ratios = {other: round(timing.speedup_over(found[other]), 3) for other in others}
            rows[name]["speedup_over"] = ratios
    if session.device.type == "cuda":
        torch.cuda.empty_cache()
    return {"batch": batch, "rows": rows, "left_out": failed}


def _our_call(model: str, batch: int, name: str, session: Session) -> Callable[[], object]:
    quantized = _quantized(model, name, session.device, 1 if session.dry else None)
    quantized.warmup([batch])
    images = _images(model, batch, session.device)
    return lambda: quantized(images)


@lru_cache(maxsize=32)  # the weights of ViT-L take seconds to draw, and 0.3 GB of the card
def _quantized(model: str, name: str, device: torch.device, depth: int | None) -> QuantViT:
    """One model for all batch sizes, whose graphs share its memory."""
    scheme, form = OURS[name]
    return QuantViT(random_vit(model, scheme, device, depth=depth, form=form), {}, backend="triton")


def _images(model: str, batch: int, device: torch.device) -> torch.Tensor:
    return torch.randn(batch, 3, *model_config(model).image_size, device=device)


_SHOWN = ("fp16", "bf16", "bf16 graph", "bf16 compiled", "bf16 compiled graph")


def table(ledger: Ledger) -> str:
    """A row a cell: images a second, and the best of ours over the best rival in it; then the targets."""
    columns = (*OURS, *_SHOWN)
    lines = [
        f"| images/s | {' | '.join(columns)} | best over best rival |",
        "| --- " * (len(columns) + 2) + "|",
    ]
    for name, cell in ledger.cells.items():
        if "error" in cell:
            lines.append(f"| {name} | failed: {cell['error'][:80]} |")
            continue
        rows = cell["rows"]
        figures = [f"{rows[c]['images_per_s']:.0f}" if c in rows else "-" for c in columns]
        ratios = [min(r["speedup_over"].values()) for r in rows.values() if r.get("speedup_over")]
        best = f"{max(ratios):.2f}" if ratios else "-"
        lines.append(f"| {name} | {' | '.join(figures)} | {best} |")
    lines.append(targets_table(ledger))
    if ledger.identity["dry"]:
        lines.append("dry run: the interpreter on a CPU; these are no speeds")
    return "\n".join(lines)
