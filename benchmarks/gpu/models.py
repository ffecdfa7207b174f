"""Whole DeiTs with random weights, in integers and as timm has them: latency and images a second, by batch."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.cases.kernels import SCHEMES, model_config
from benchmarks.cases.models import random_vit
from benchmarks.gpu.ledger import Ledger
from benchmarks.gpu.rivals import compiled
from benchmarks.gpu.session import DONE, UNFINISHED, Session, Work
from benchmarks.gpu.timing import time_candidates
from qvit.models.integer import Integer

SUITE = "gpu-models"
TIMM_NAMES = {
    "deit_t": "deit_tiny_patch16_224",
    "deit_s": "deit_small_patch16_224",
    "deit_b": "deit_base_patch16_224",
}
_ORDER = (
    ("deit_s", 64), ("deit_b", 1), ("deit_b", 64), ("deit_s", 1), ("deit_t", 64), ("deit_b", 256),
    ("deit_s", 256), ("deit_t", 1), ("deit_s", 8), ("deit_b", 8), ("deit_t", 256), ("deit_t", 8),
)  # fmt: skip
_DRY_ORDER = (("tiny", 1),)
_FLOATS = {"fp16": torch.float16, "bf16": torch.bfloat16}


def run(session: Session) -> int:
    """Measure what is not measured yet; exit code."""
    session.require_green_check()
    ledger = session.open(SUITE)
    left = session.run(ledger, cells(session))
    if not left:
        session.close(ledger, {"cells": len(ledger.cells)})
    print(table(ledger))
    return UNFINISHED if left else DONE


def cells(session: Session) -> Iterator[tuple[str, Work]]:
    """One a model and batch, all variants in it."""
    for model, batch in _DRY_ORDER if session.dry else _ORDER:
        yield f"{model}-b{batch}", lambda m=model, b=batch: _measure(m, b, session)


def _measure(model: str, batch: int, session: Session) -> dict[str, Any]:
    config = model_config(model)
    images = torch.randn(batch, 3, *config.image_size, device=session.device)
    calls = {**_integers(model, images, session), **_floats(model, images, session)}
    found, failed = time_candidates(calls, session.device, dry=session.dry)
    rows = {}
    for name, measured in found.items():
        rows[name] = measured.row() | {
            "images_per_s": round(batch / measured.best.median * 1000, 1),
            "speedup_over": {
                other: round(measured.best.speedup_over(found[other].best), 3)
                for other in found
                if other not in SCHEMES and name in SCHEMES
            },
        }
    if session.device.type == "cuda":
        torch.cuda.empty_cache()
    return {"batch": batch, "rows": rows, "left_out": failed}


def _integers(
    model: str, images: torch.Tensor, session: Session
) -> dict[str, Callable[[], object]]:
    execution: Any = Integer("triton")
    calls = {}
    for scheme in SCHEMES:
        vit = random_vit(model, scheme, session.device, depth=1 if session.dry else 12)
        calls[scheme] = lambda vit=vit: _predict(vit, images, execution)
    return calls


def _floats(model: str, images: torch.Tensor, session: Session) -> dict[str, Callable[[], object]]:
    calls = {}
    for name, dtype in _FLOATS.items():
        float_model = _timm_model(model).to(session.device, dtype).eval()
        x = images.to(dtype)
        calls[name] = lambda m=float_model, x=x: _predict(m, x)
        if name == "bf16":  # fp16 compiles to the same code with another type
            fast = compiled(float_model, dry=session.dry)
            calls[f"{name} compiled"] = lambda m=fast, x=x: _predict(m, x)
    return calls


def _predict(model: Any, *arguments: Any) -> object:
    with torch.no_grad():
        return model(*arguments)


def _timm_model(model: str) -> Any:
    import timm

    if model in TIMM_NAMES:
        return timm.create_model(TIMM_NAMES[model], pretrained=False)
    config = model_config(model)
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=config.image_size,
        embed_dim=config.embed_dim,
        num_heads=config.num_heads,
        depth=1,
        num_classes=config.num_classes,
    )


_VARIANTS = (*SCHEMES, "fp16", "bf16", "bf16 compiled")


def table(ledger: Ledger) -> str:
    """A row a model and batch: images a second; a star marks what could not be captured in a CUDA graph."""
    lines = [
        f"| images/s | {' | '.join(_VARIANTS)} | W4A8 over bf16 compiled |",
        "| --- " * (len(_VARIANTS) + 2) + "|",
    ]
    for name, cell in ledger.cells.items():
        rows = cell.get("rows", {})
        if "error" in cell:
            lines.append(f"| {name} | failed: {cell['error'][:80]} |")
            continue
        ratio = rows.get("W4A8", {}).get("speedup_over", {}).get("bf16 compiled", float("nan"))
        figures = [_figure(rows.get(variant)) for variant in _VARIANTS]
        lines.append(f"| {name} | {' | '.join(figures)} | {ratio:.2f} |")
    if ledger.identity["dry"]:
        lines.append("dry run: the interpreter on a CPU; these are no speeds")
    return "\n".join(lines)


def _figure(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    return f"{row['images_per_s']:.0f}{'*' if row.get('no_graph') else ''}"
