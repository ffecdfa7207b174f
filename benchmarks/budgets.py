"""Twenty random budgets on demo_vit: whether what is found meets them, and how near it comes, beside Q-ViT's penalty.

Budgets of size, BitOps, modelled latency, and pairs of them. The limit of one budget lies anywhere between the smallest
and the largest cost; those of two are a little above the costs of a random allocation, so that they can be met. Whether
an allocation lies within 5 % below all limits is decided by dynamic programming over the layers, on costs rounded to a
thousandth of the limit: what it finds exists, within the error of that rounding. A limit of latency is met where the
modelled pass of the whole model is within it; the dynamic programming knows sums of layers only, from which mixed bits
are up to a hundredth away. A budget that is refused counts as not met.
"""

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cells import Cell
from benchmarks.searching.rivals import loss_of
from qvit import zoo
from qvit.errors import UsageError
from qvit.recipe import MAX_BITS, MIN_BITS, Recipe
from qvit.search.allocation import Space
from qvit.search.budgets import Budget, hold
from qvit.search.costs import CostTable
from qvit.search.descent import Searcher, Settings, descend
from qvit.search.latency import Place
from qvit.search.run import make_searcher, read_shape
from qvit.search.start import make_cost_table

MODEL = "demo_vit"
CARD = Place("nvidia-l4", batch=64)
KINDS = (
    ("size",), ("bitops",), ("latency",), ("size", "bitops"), ("size", "latency"), ("bitops", "latency"),
)  # fmt: skip
COUNT = 20
PENALTIES = (1.0, 10.0, 100.0)
NEAR = 0.95  # of a limit
_BINS = 1000


def cells() -> Iterator[Cell]:
    """All budgets in one: the search itself takes seconds."""
    yield f"budgets-{MODEL}-seed0", lambda: _measure(0)


def _measure(seed: int) -> dict[str, Any]:
    source = zoo.resolve(MODEL)
    config = read_shape(source)
    recipe = Recipe.preset("qvit", weight_bits=4, activation_bits=4).without_images()
    recipe = recipe.with_open_ends()
    space = Space.of(config, recipe)
    tables = {n: make_cost_table(n, config, space, CARD) for n in ("size", "bitops", "latency")}
    searcher = make_searcher(source, space)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for kind in islice(cycle(KINDS), COUNT):
        budgets = draw_budgets([tables[name] for name in kind], len(space.choices), generator)
        methods = {"hdx": _search(searcher, budgets)}
        for penalty in PENALTIES:
            settings = Settings(penalty=penalty)
            middle = torch.full((len(space.choices),), 4.0, dtype=torch.float64)
            wanted = descend(searcher.losses, middle, budgets, settings)
            bits = wanted.round().clamp(MIN_BITS, MAX_BITS).long()
            methods[f"penalty {penalty:g}"] = _describe(bits, budgets, searcher.losses)
        rows.append(
            {
                "limits": {b.table.name: b.limit for b in budgets},
                "near_exists": near_exists(budgets),
                "methods": methods,
            }
        )
    return {"model": MODEL, "latency": {"on": CARD.name, "batch": CARD.batch}, "budgets": rows}


def draw_budgets(
    tables: Sequence[CostTable], count: int, generator: torch.Generator
) -> list[Budget]:
    """One or two that can be met."""
    if len(tables) == 1:
        share = float(torch.rand(1, generator=generator))
        (table,) = tables
        return [Budget(table, table.smallest + share * (table.largest - table.smallest))]
    bits = torch.randint(MIN_BITS, MAX_BITS + 1, (count,), generator=generator)
    room = (1 + 0.05 * torch.rand(len(tables), generator=generator)).tolist()
    return [Budget(t, t.whole(bits) * more) for t, more in zip(tables, room, strict=True)]


def near_exists(budgets: Sequence[Budget]) -> bool:
    """Whether some allocation costs between 95 and 100 % of every limit, with the error of the rounding to spare."""
    layers = budgets[0].table.costs.shape[0]
    room = (layers + 1) / 2 / _BINS  # half a bin a layer, and one of the fixed cost
    costs = [
        np.rint(budget.table.costs.flatten(1).numpy() / budget.limit * _BINS).astype(int)
        for budget in budgets
    ]
    reached = np.zeros((_BINS + 1,) * len(budgets), dtype=bool)
    fixed = [round(b.table.fixed / b.limit * _BINS) for b in budgets]
    if max(fixed) > _BINS:
        return False
    reached[tuple(fixed)] = True
    for layer in range(layers):
        after = np.zeros_like(reached)
        for step in {
            tuple(int(c[layer, cell]) for c in costs) for cell in range(costs[0].shape[1])
        }:
            if max(step) <= _BINS:
                into = tuple(slice(s, None) for s in step)
                kept = tuple(slice(None, _BINS + 1 - s) for s in step)
                after[into] |= reached[kept]
        reached = after
    near = slice(int(np.ceil((NEAR + room) * _BINS)), int((1 - room) * _BINS) + 1)
    return bool(reached[(near,) * len(budgets)].any())


def _search(searcher: Searcher, budgets: Sequence[Budget]) -> dict[str, Any]:
    try:
        bits = searcher.find(budgets)
    except UsageError as error:
        return {"meets": False, "refused": str(error)}
    return _describe(bits, budgets, searcher.losses)


def _describe(bits: Tensor, budgets: Sequence[Budget], losses: Tensor) -> dict[str, Any]:
    return {
        "meets": hold(budgets, bits),
        "of_limit": {b.table.name: round(b.table.whole(bits) / b.limit, 4) for b in budgets},
        "sum_of_losses": float(f"{float(loss_of(losses, bits).sum()):.4g}"),
    }


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, a row a method."""
    lines = [
        "| method | budgets met | refused | within 5 %, of those where that exists |",
        "| --- " * 4 + "|",
    ]
    rows = [row for cell in found for row in cell["budgets"]]
    for method in rows[0]["methods"] if rows else ():
        results = [(row["near_exists"], row["methods"][method]) for row in rows]
        met = sum(result["meets"] for _, result in results)
        there = [result for exists, result in results if exists]
        near = sum(r["meets"] and min(r["of_limit"].values()) >= NEAR for r in there)
        refused = sum("refused" in result for _, result in results)
        lines.append(f"| {method} | {met} of {len(results)} | {refused} | {near} of {len(there)} |")
    return "\n".join(lines)
