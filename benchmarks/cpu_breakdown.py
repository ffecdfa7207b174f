"""Where the time of an image goes on one core: each step of the compiled path beside its floor.

The floor of a product is its int8 operations at the rate of torch's product of two 1536 x 1536 matrices, measured in
the same process; of what reads and writes rows, its bytes at the rate of a copy that stays in the second cache; of the
pixels, and of the head's weights, which meet one row, at the rate of a copy of the image. Values do not change the
time, so weights are random.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.cells import Cell
from benchmarks.cpu_models import BATCHES, MODELS, load_quantized
from qvit import zoo

SCHEMES = ((8, 8), (4, 8), (4, 4))
PASSES = 15


def cells() -> Iterator[Cell]:
    """One a model and scheme."""
    for model in MODELS:
        for w, a in SCHEMES:
            yield f"cpu-breakdown-{model}-w{w}a{a}", lambda m=model, w=w, a=a: _measure(m, w, a)


def _measure(name: str, w: int, a: int) -> dict[str, Any]:
    import torch

    from qvit.deployment.compiled_vit import CompiledViT

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        source = zoo.resolve(name, pretrained=False)
        model = load_quantized(source, w, a, 1)
        program = CompiledViT(model.vit, 1)
        rates = _rates()
        floors = _floors(model.vit, rates)
        rows = []
        for batch in BATCHES:
            images = torch.randn(batch, *source.pretrained_cfg["input_size"])
            rows += _rows(program, images, floors)
    finally:
        torch.set_num_threads(before)
    return {
        "model": source.timm_name,
        "scheme": f"W{w}A{a}",
        "threads": 1,
        "rates": rates,
        "rows": rows,
        "schema_version": 1,
    }


def _rows(program: Any, images: Any, floors: dict[str, float]) -> list[dict[str, Any]]:
    """The steps of a kind summed over the blocks; of several passes, the fastest of each step."""
    passes = [program.time(images) for _ in range(PASSES)]
    taken: dict[str, float] = defaultdict(float)
    for index, (step, _) in enumerate(passes[0]):
        taken[step] += min(one[index][1] for one in passes)
    whole = sum(taken.values())
    return [
        {
            "batch": images.shape[0],
            "step": step,
            "us_per_image": seconds * 1e6,
            "floor_us": floors[step] * 1e6,
            "share": seconds / whole,
        }
        for step, seconds in taken.items()
    ]


def _rates() -> dict[str, float]:
    """Of one core: int8 multiplications and additions a second, bytes of a copy in the cache and of an image."""
    import torch

    a, b = (torch.randint(-127, 128, (1536, 1536), dtype=torch.int8) for _ in range(2))
    product = _fastest(lambda: torch._int_mm(a, b))  # pyright: ignore[reportPrivateImportUsage]
    rates = {"operations": 2 * 1536**3 / product}
    for name, values in (("cache", 64 * 1024), ("image", 3 * 224 * 224)):
        source, target = torch.randn(values), torch.empty(values)
        seconds = _fastest(lambda s=source, t=target: t.copy_(s))
        rates[f"{name}_bytes"] = 2 * 4 * values / seconds
    return rates


def _fastest(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(200):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.quantiles(taken, n=20)[0]


def _floors(vit: Any, rates: dict[str, float]) -> dict[str, float]:
    """Seconds of each step over all blocks of one image."""
    config, block = vit.config, vit.blocks[0]
    patches, tokens = config.num_patches, config.num_patches + config.num_prefix_tokens
    dim, inner, hidden = config.embed_dim, block.attn.proj.in_features, block.mlp.fc2.in_features
    pixels = config.in_chans * config.image_size[0] * config.image_size[1]
    operations = {
        "qkv": tokens * dim * 3 * inner,
        "attention": 2 * tokens * tokens * inner,
        "proj": tokens * inner * dim,
        "fc1": tokens * dim * hidden,
        "fc2": tokens * hidden * dim,
    }
    bytes_moved = {
        "norm1": 5 * tokens * dim,
        "norm2": 5 * tokens * dim,
        "quantize": 5 * tokens * inner,
    }
    depth = len(vit.blocks)
    floors = {"pixels": 5 * pixels / rates["image_bytes"]}
    floors["norm"] = 5 * dim / rates["cache_bytes"]
    floors["head"] = dim * config.num_classes / rates["image_bytes"]
    floors["patch_embed"] = (
        2 * patches * vit.patch_embed.proj.in_features * dim / rates["operations"]
    )
    floors |= {step: depth * 2 * n / rates["operations"] for step, n in operations.items()}
    return floors | {step: depth * n / rates["cache_bytes"] for step, n in bytes_moved.items()}


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, a row a cell and batch: microseconds an image of every step, with its floor."""
    steps = [row["step"] for row in found[0]["rows"] if row["batch"] == BATCHES[0]]
    lines = [
        f"| model | scheme | batch | {' | '.join(steps)} | all |",
        "| --- | --- | --- |" + " --- |" * (len(steps) + 1),
    ]
    for cell in found:
        for batch in BATCHES:
            rows = {row["step"]: row for row in cell["rows"] if row["batch"] == batch}
            values = [f"{rows[s]['us_per_image']:.0f} ({rows[s]['floor_us']:.0f})" for s in steps]
            whole = sum(row["us_per_image"] for row in rows.values())
            floor = sum(row["floor_us"] for row in rows.values())
            values.append(f"{whole:.0f} ({floor:.0f})")
            lines.append(f"| {cell['model']} | {cell['scheme']} | {batch} | {' | '.join(values)} |")
    return "\n".join(lines)
