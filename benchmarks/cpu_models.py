"""ViT-T and DeiT-S with random weights (values do not change the time): integers beside timm's float model, eager and
compiled, and beside other int8 runtimes, in alternating rounds of one process.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.cells import Cell
from qvit import pipeline, timing, zoo
from qvit.latency.floats import compile_all
from qvit.recipe import Recipe

MODELS = ("vit_t", "deit_s")
BATCHES = (1, 8)
SCHEMES = ((8, 8), (4, 8), (4, 4))
RIVALS = ("openvino-int8", "onnxruntime-dynamic", "onnxruntime-static")
# Whose times ours are divided into: each alone, and the better of the two in bf16.
BASES = {
    "fp32": ("fp32",),
    "bf16": ("bf16", "bf16-compile"),
    "openvino-int8": ("openvino-int8",),
    "onnxruntime-int8": ("onnxruntime-dynamic", "onnxruntime-static"),
}


def cells() -> Iterator[Cell]:
    """One a model and batch size, all variants in it."""
    for model in MODELS:
        for batch in BATCHES:
            yield f"cpu-models-{model}-batch{batch}", lambda m=model, b=batch: _time(m, b)


def _time(name: str, batch: int) -> dict[str, Any]:
    import torch

    left_out: dict[str, str] = {}
    generator = torch.Generator().manual_seed(0)
    source = zoo.resolve(name, pretrained=False)
    images = torch.randn(batch, *source.pretrained_cfg["input_size"], generator=generator)
    with (
        torch.inference_mode(),
        warnings.catch_warnings(),
        tempfile.TemporaryDirectory() as folder,
    ):
        warnings.simplefilter("ignore")  # of compilers and exporters, about themselves
        rivals = _rivals(source, images, Path(folder), left_out)
        calls = _floats(source, images) | rivals | _ours(source, images)
        with compile_all(len(calls) * len(MODELS) * len(BATCHES)):
            taken = timing.measure(calls, rounds=None)
    return {
        "model": source.timm_name,
        "batch": batch,
        "threads": torch.get_num_threads(),
        "rounds": len(next(iter(taken.values())).rounds),
        "rows": [_row(variant, taken) for variant in taken],
        "left_out": left_out,
        "schema_version": 2,
    }


def _row(variant: str, taken: dict[str, timing.Timing]) -> dict[str, Any]:
    """speedup_over: against each base, the median over rounds of the ratio of medians; of two, the smaller one."""
    ours = taken[variant]
    ratios = {
        base: min(ours.speedup_over(taken[name]) for name in names if name in taken)
        for base, names in BASES.items()
        if any(name in taken for name in names)
    }
    return {
        "variant": variant,
        "latency_ms": {f"p{q}": ours.percentile(q) for q in (10, 50, 90)},
        "calls": len(ours.samples),
        "speedup_over": ratios,
    }


def _floats(source: Any, images: Any) -> dict[str, Callable[[], object]]:
    import torch

    fp32 = zoo.load(source, seed=0).eval()
    bf16 = zoo.load(source, seed=0).to(torch.bfloat16).eval()
    compiled, small = torch.compile(bf16, dynamic=False), images.to(torch.bfloat16)
    return {
        "fp32": lambda: fp32(images),
        "bf16": lambda: bf16(small),
        "bf16-compile": lambda: compiled(small),
    }


def _rivals(
    source: Any, images: Any, work: Path, left_out: dict[str, str]
) -> dict[str, Callable[[], object]]:
    from qvit.latency.floats import FloatModels
    from qvit.latency.variants import VARIANTS

    calls: dict[str, Callable[[], object]] = {}
    floats = FloatModels(source, "cpu", 0, work)
    for name in RIVALS:
        missing = VARIANTS[name].find_missing("cpu")
        reason = None if missing is None else missing.reason
        if missing is None:
            try:
                calls[name] = VARIANTS[name].build(floats, images).bind(images)
                calls[name]()
            except Exception as error:  # noqa: BLE001 - whatever a rival dislikes, the others can still be timed
                calls.pop(name, None)
                reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if reason is not None:
            left_out[name] = reason
    return calls


def _ours(source: Any, images: Any) -> dict[str, Callable[[], object]]:
    calls: dict[str, Callable[[], object]] = {}
    for w, a in SCHEMES:
        model = load_quantized(source, w, a, images.shape[0])
        calls[f"qvit-w{w}a{a}"] = lambda model=model: model(images)
    return calls


def load_quantized(source: Any, weight_bits: int, activation_bits: int, batch: int) -> Any:
    """A QuantViT of random weights, warmed up for a batch size."""
    import torch

    from qvit.deployment import QuantViT

    preset = Recipe.preset("qvit", weight_bits=weight_bits, activation_bits=activation_bits)
    recipe = preset.without_images()  # random weights are as fast however they are rounded
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
        out = Path(folder) / "model"
        pipeline.quantize(source, recipe, out, progress=False)
        model = QuantViT.from_pretrained(out)
    model.warmup((batch,))
    return model


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, a row a cell and variant: times, and how many times as fast as each base."""
    lines = [
        f"| model | batch | variant | p50 ms | p90 ms | {' | '.join(f'x {base}' for base in BASES)} |",
        "| --- | --- | --- | --- | --- |" + " --- |" * len(BASES),
    ]
    for cell in found:
        for row in cell["rows"]:
            ms, ratios = row["latency_ms"], row["speedup_over"]
            against = " | ".join(f"{ratios[base]:.2f}" if base in ratios else "-" for base in BASES)
            lines.append(
                f"| {cell['model']} | {cell['batch']} | {row['variant']} | {ms['p50']:.2f} | {ms['p90']:.2f} "
                f"| {against} |"
            )
    return "\n".join(lines)
