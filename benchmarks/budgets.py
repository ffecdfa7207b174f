"""Twenty random budgets on demo_vit: whether what is found meets them, and how near it comes, beside Q-ViT's penalty,
in a descent over the same losses and in Q-ViT's own training.

Budgets of size, BitOps, modelled latency, and pairs of them. The limit of one budget lies anywhere between the smallest
and the largest cost; those of two are a little above the costs of a random allocation, so that they can be met. Dynamic
programming says whether an allocation lies within 5 % below all limits, and what losses add up to there at least; what
they add up to anywhere within the limits, at least, is Lagrange's bound. A limit is met where the whole file, or the
modelled pass of the whole model, is within it; both bounds know sums of layers only, which files are up to three
thousandths below, and passes a hundredth away from. Where it finds none and a method has, there is one. A budget
that is refused counts as not met.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.cells import Cell
from benchmarks.searching.bounds import NEAR, least_loss, least_loss_near
from benchmarks.searching.rivals import penalized
from benchmarks.sources import float_vit
from qvit import zoo
from qvit.errors import UsageError
from qvit.models.timm_import import read_shape
from qvit.recipe import MAX_BITS, MIN_BITS, Recipe
from qvit.search.allocation import Space
from qvit.search.budgets import Budget, hold
from qvit.search.costs import CostTable
from qvit.search.descent import Settings, descend
from qvit.search.exchange import loss_of
from qvit.search.latency import Place
from qvit.search.run import make_searcher
from qvit.search.sample import draw_sample
from qvit.search.start import make_cost_table
from qvit.search.trained import PENALTY, Training, train_bits

MODEL = "demo_vit"
CARD = Place("nvidia-l4", batch=64)
KINDS = (
    ("size",), ("bitops",), ("latency",), ("size", "bitops"), ("size", "latency"), ("bitops", "latency"),
)  # fmt: skip
COUNT = 20
PENALTIES = (1.0, 10.0, 100.0)


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
        methods = {"hdx": _attempt(searcher.find, budgets, searcher.losses)}
        for penalty in PENALTIES:
            direct = penalized(budgets, penalty)
            middle = torch.full((len(space.choices),), 4.0, dtype=torch.float64)
            wanted = descend(searcher.losses, middle, budgets, Settings(), direct)
            bits = wanted.round().clamp(MIN_BITS, MAX_BITS).long()
            methods[f"penalty {penalty:g}"] = _describe(bits, budgets, searcher.losses)
        train = partial(_train, space, seed)
        methods["qvit"] = _attempt(train, budgets, searcher.losses)
        near = least_loss_near(budgets, searcher.losses)
        rows.append(
            {
                "limits": {b.table.name: b.limit for b in budgets},
                "near_exists": near < float("inf") or any(map(_is_near, methods.values())),
                "least_loss": _short(least_loss(budgets, searcher.losses)),
                "least_loss_near": _short(near),
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


def _attempt(
    find: Callable[[Sequence[Budget]], Tensor], budgets: Sequence[Budget], losses: Tensor
) -> dict[str, Any]:
    try:
        bits = find(budgets)
    except UsageError as error:
        return {"meets": False, "refused": str(error)}
    return _describe(bits, budgets, losses)


def _train(space: Space, seed: int, budgets: Sequence[Budget]) -> Tensor:
    """What Q-ViT's training ends with under its penalty, as published but for the missing labels, to whole bits."""
    vit = float_vit(MODEL)
    sample = draw_sample(vit.config, space.recipe, zoo.resolve(MODEL).pretrained_cfg)
    wanted = train_bits(vit, space, sample, budgets, Training(penalty=PENALTY), seed=seed)
    return wanted.round().clamp(MIN_BITS, MAX_BITS).long()


def _is_near(result: dict[str, Any]) -> bool:
    """Whether all budgets are met, and used."""
    return result["meets"] and min(result["of_limit"].values()) >= NEAR


def _describe(bits: Tensor, budgets: Sequence[Budget], losses: Tensor) -> dict[str, Any]:
    return {
        "meets": hold(budgets, bits),
        "of_limit": {b.table.name: round(b.table.whole(bits) / b.limit, 4) for b in budgets},
        "sum_of_losses": _short(float(loss_of(losses, bits).sum())),
    }


def _short(loss: float) -> float | None:
    """As JSON has it."""
    return float(f"{loss:.4g}") if loss < float("inf") else None


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, a row a method."""
    lines = [
        "| method | budgets met | refused | within 5 %, of those where that exists | losses, of the least |",
        "| --- " * 5 + "|",
    ]
    rows = [row for cell in found for row in cell["budgets"]]
    for method in rows[0]["methods"] if rows else ():
        results = [(row, row["methods"][method]) for row in rows]
        met = [(row, result) for row, result in results if result["meets"]]
        there = [result for row, result in results if row["near_exists"]]
        near = sum(map(_is_near, there))
        refused = sum("refused" in result for _, result in results)
        over = [result["sum_of_losses"] / row["least_loss"] for row, result in met]
        spread = f"{median(over):.3f}, {max(over):.3f} at most" if over else "-"
        lines.append(
            f"| {method} | {len(met)} of {len(results)} | {refused} | {near} of {len(there)} | {spread} |"
        )
    return "\n".join(lines)
