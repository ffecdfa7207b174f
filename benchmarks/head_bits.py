"""Bits of every head beside bits of every layer, at the same size and BitOps: python benchmarks/head_bits.py --bits 3.

demo_vit, whose search takes seconds. Bits are found without data; rendered pictures judge. Weights are at their nearest
codes. One JSON a width and seed.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [
    str(Path(__file__).resolve().parent.parent),
    str(Path(__file__).resolve().parent.parent / "kernels"),
]

import click  # noqa: E402 - after the tree is on the path, as for all that comes later
from torch import Tensor  # noqa: E402

from benchmarks import cells  # noqa: E402
from benchmarks.development import IMAGES_FROM, expected, predict  # noqa: E402
from benchmarks.searching.rivals import loss_of  # noqa: E402
from benchmarks.searching.table import paired_difference  # noqa: E402
from benchmarks.sources import DEMO, source  # noqa: E402
from qvit import evaluation  # noqa: E402
from qvit.models.plan import name_scheme, plan_scheme  # noqa: E402
from qvit.models.timm_import import read_shape  # noqa: E402
from qvit.recipe import Recipe  # noqa: E402
from qvit.search.allocation import Space  # noqa: E402
from qvit.search.budgets import Budget  # noqa: E402
from qvit.search.descent import Searcher  # noqa: E402
from qvit.search.run import make_searcher  # noqa: E402
from qvit.search.start import begin, make_cost_table, preset_starts  # noqa: E402

IMAGES = 400


@click.command()
@click.option("--bits", "widths", type=int, multiple=True, default=(4, 3), show_default=True)
@click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the JSON files.")
def main(widths: tuple[int, ...], seeds: tuple[int, ...], out: Path | None) -> None:
    """Measure what the output folder does not hold yet, and print a table of all of it."""
    folder = out or cells.ROOT / "benchmarks" / "results" / cells.machine_name() / "head-bits"
    print(_table(cells.measure(_planned(widths, seeds), folder)))


def _planned(widths: tuple[int, ...], seeds: tuple[int, ...]) -> Iterator[cells.Cell]:
    for seed in seeds:
        for bits in widths:
            label = f"head-bits-{DEMO}-w{bits}a{bits}-seed{seed}"
            yield label, lambda bits=bits, seed=seed: compare(bits, seed)


def compare(bits: int, seed: int) -> dict[str, Any]:
    """Found bits of layers, and of heads, under the size and BitOps of the uniform preset."""
    config = read_shape(source(DEMO))
    preset = Recipe.preset("qvit", weight_bits=bits, activation_bits=bits)
    uniform = Space.of(config, preset.with_open_ends())
    names = ("size", "bitops")
    costs = [make_cost_table(name, config, uniform, None) for name in names]
    limits = {t.name: t.whole(uniform.usual(bits)) for t in costs}
    recipes = [r.override([f"seed={seed}"]) for r in preset_starts("qvit", limits)]
    layers, _ = begin(config, recipes, limits)
    found = {"uniform": _judge(make_searcher(source(DEMO), layers), layers.usual(bits))}
    for name, space in {
        "layers": layers,
        "heads": Space.of(config, layers.recipe, heads=True),
    }.items():
        budgets = [
            Budget(make_cost_table(n, config, space, None), limit) for n, limit in limits.items()
        ]
        searcher = make_searcher(source(DEMO), space)
        start = time.process_time()
        allocation = searcher.find(budgets)
        seconds = time.process_time() - start
        scheme = plan_scheme(config, space.recipe_of(allocation))
        found[name] = {
            "choices": len(space.choices),
            "scheme": name_scheme(config, scheme),
            "processor_seconds": round(seconds, 1),
            "sum_of_losses": float(loss_of(searcher.losses, allocation).sum()),
            "leaves_kl": searcher.measure(allocation),
            "of_limit": {
                b.table.name: round(b.table.whole(allocation) / b.limit, 4) for b in budgets
            },
            "layers": space.layers(allocation),
            **_judge(searcher, allocation),
        }
    known = {"model": DEMO, "scheme": f"W{bits}A{bits}", "seed": seed, "limits": limits}
    return {**known, "images_from": IMAGES_FROM[DEMO], "found": found}


def _judge(searcher: Searcher, bits: Tensor) -> dict[str, Any]:
    """KL in nats, of every image, too, agreement and top-1."""
    theirs = expected(DEMO, IMAGES)
    found = predict(lambda images: searcher.answer(images, bits), DEMO, IMAGES)
    compared = evaluation.compare(found, theirs)
    each = evaluation.divergences(theirs.logits, found.logits)
    return {
        "images": compared.images,
        "kl": compared.kl,
        "agreement": compared.agreement,
        "top1": compared.top1,
        "kl_each": [round(float(kl), 5) for kl in each],
    }


def _table(found: list[dict[str, Any]]) -> str:
    """Markdown, a row a cell."""
    lines = [
        "| scheme | seed | uniform | layers | heads | less by heads | 95 % interval | losses of layers, heads |",
        "| --- " * 8 + "|",
    ]
    for cell in found:
        known = cell["found"]
        value, (low, high) = paired_difference(
            known["heads"]["kl_each"], known["layers"]["kl_each"]
        )
        kls = " | ".join(f"{known[name]['kl']:.4f}" for name in ("uniform", "layers", "heads"))
        sums = ", ".join(f"{known[name]['sum_of_losses']:.4f}" for name in ("layers", "heads"))
        lines.append(
            f"| {cell['scheme']} | {cell['seed']} | {kls} | {value:.4f} | {low:.4f} to {high:.4f} | {sums} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
