"""From a source, a recipe and limits to the recipe whose layers have the bits that were found."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from qvit import zoo
from qvit.models.config import ViTConfig
from qvit.models.plan import name_scheme, plan_scheme
from qvit.models.timm_import import read_model, read_shape
from qvit.models.vit import ViT
from qvit.recipe import MAX_BITS, Recipe
from qvit.search.allocation import Space
from qvit.search.budgets import Budget, fit
from qvit.search.costs import CostTable
from qvit.search.descent import Found, Searcher, Settings
from qvit.search.frontier import COSTS, MEASUREMENTS, POINTS, Frontier, Point, estimate_seconds
from qvit.search.latency import Place
from qvit.search.sample import draw_sample, plan_sample
from qvit.search.start import Start, begin, choose_start, starts_by_cost
from qvit.search.stopwatch import UnmeasuredError
from qvit.search.trained import PENALTY, Training, estimate_training, train_bits
from qvit.synthesis.leaves import draw_pictures
from qvit.zoo import Source

logger = logging.getLogger("qvit")

IMAGES = 64  # dead leaves
METHODS = ("curvature", "qvit")
_MEASUREMENTS = 2  # of what is found, and of the largest allocation that needs no search


def plan_search(
    source: Source,
    recipes: Sequence[Recipe],
    limits: Mapping[str, float],
    place: Place | None = None,
    method: str = METHODS[0],
    *,
    heads: bool = False,
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe that a search would begin with, and what it would choose among, without weights: the number of
    choices, and of each budget the limit and the smallest and largest cost that is possible; and the seconds that it
    would take, at the worst. Nothing is measured: a latency of here that was not before has its limit alone, and the
    recipe is that for the other limits. Raises what `allocate` raises.
    """
    config = read_shape(source)
    space, budgets = _begin_plan(config, recipes, limits, place or Place(), heads=heads)
    _remark_loose(budgets)
    if method == "qvit":
        training = Training()
        plan = {"steps": training.steps, **plan_sample(space.recipe)}
        seconds = estimate_training(config, training)
        seconds += estimate_seconds(config, 0, _MEASUREMENTS)
    else:
        plan = {"images": IMAGES}
        seconds = estimate_seconds(config, len(space.choices), _MEASUREMENTS)
    tables = {budget.table.name: budget.table for budget in budgets}
    return space.recipe, {
        "method": method,
        "choices": len(space.choices),
        **plan,
        "estimated_seconds": round(seconds),
        "budgets": {
            name: {"limit": limit, **_possible(tables.get(name), place)}
            for name, limit in limits.items()
        },
    }


def _begin_plan(
    config: ViTConfig,
    recipes: Sequence[Recipe],
    limits: Mapping[str, float],
    place: Place,
    *,
    heads: bool,
) -> tuple[Space, list[Budget]]:
    """As `begin` does, without a measurement; without the budget that needs one, where it does."""
    try:
        return begin(config, recipes, limits, replace(place, measures=False), heads=heads)
    except UnmeasuredError:
        logger.info("latency was not measured here yet, and a dry run does not: the search will")
    others = {name: limit for name, limit in limits.items() if name != "latency"}
    starts = [Start(config, Space.of(config, recipe, heads=heads)) for recipe in recipes]
    start = choose_start(starts, others) if others else starts[0]
    return start.space, start.budgets(others)


def _possible(table: CostTable | None, place: Place | None) -> dict[str, Any]:
    """What a budget may be, by its table; None: that of a latency that was not measured."""
    if table is None:
        return {"known": "not measured yet", **_where(place)}
    possible = {"smallest": table.smallest, "largest": table.largest}
    return {**possible, **_circumstances(table, place)}


def allocate(
    source: Source,
    recipes: Sequence[Recipe],
    limits: Mapping[str, float],
    place: Place | None = None,
    method: str = METHODS[0],
    *,
    heads: bool = False,
    progress: bool = True,
) -> tuple[Recipe, dict[str, Any]]:
    """One of the recipes (see `begin`) with bits for every layer that it leaves open, and what is known of them.

    limits: By name, "size" in bytes of model.safetensors, "bitops" of an image, "latency" in seconds of a pass at
    `place`. Bits of activations are searched where one of them depends on these, and are the recipe's elsewhere.
    method: "curvature" (descent.py), whose images are dead leaves, so that nothing is read; or "qvit" (trained.py),
    which trains on the recipe's images where these are the user's. heads: Whether weights of attention heads have bits
    of their own. progress: Show a bar of its steps on stderr, if that is a terminal.

    Raises UsageError for a limit that nothing meets, or limits that nothing meets together, before any weights are
    read, and the errors of `zoo.load`; for the user's images those of `open_images`.
    """
    config = read_shape(source)
    space, budgets = begin(config, recipes, limits, place, heads=heads)
    _remark_loose(budgets)
    if method == "qvit":
        found = _train(source, space, budgets, progress)
    else:
        found = make_searcher(source, space).search(budgets)
    known = {
        "method": method,
        "kl": round(found.divergence, 4),
        "kl_uniform": None if found.uniform is None else round(found.uniform, 4),
        **{
            b.table.name: {
                "limit": b.limit,
                "found": b.table.whole(found.bits),
                **_circumstances(b.table, place),
            }
            for b in budgets
        },
    }
    return space.recipe_of(found.bits), known


def _remark_loose(budgets: Sequence[Budget]) -> None:
    for budget in budgets:
        say, most = budget.table.say, budget.table.largest
        if budget.limit >= most:
            logger.info(
                "a %s of %s binds nothing: the most that any bits cost is %s",
                budget.table.name, say(budget.limit), say(most, up=True),
            )  # fmt: skip


def plan_frontier(
    source: Source, recipes: Mapping[str, Sequence[Recipe]], place: Place
) -> dict[str, Any]:
    """What `trace_frontier` would cost, without weights. Raises UsageError for what is no plain ViT, and for
    recipes whose layers can have no bits of their own.
    """
    config = read_shape(source)
    starts = starts_by_cost(config, recipes, place)
    spaces = [start.space for start in {s for own in starts.values() for s in own}]
    for space in spaces:
        plan_scheme(config, space.recipe_of(space.uniform(MAX_BITS)))  # what refuses, refuses now
    choices = [len(space.choices) for space in spaces]
    measurements = len(COSTS) * MEASUREMENTS
    seconds = estimate_seconds(config, sum(choices), measurements, len(spaces))
    return {
        "model": source.timm_name,
        "choices": max(choices),
        "images": IMAGES,
        "points": len(COSTS) * POINTS,
        "latency": {"on": place.name, "batch": place.batch},
        "estimated_seconds": round(seconds),
    }


def trace_frontier(
    source: Source,
    recipes: Mapping[str, Sequence[Recipe]],
    place: Place,
    most: float | None,
    *,
    progress: bool = True,
) -> tuple[dict[str, Any], dict[str, Recipe]]:
    """The frontier of KL against every cost, and recipes of its points by name: "size-0", ..., "latency-cheapest".

    recipes: By cost, of which each limit has the one that suits it (see `begin`). most: Where given, the cheapest
    allocation of each cost whose KL is not above it is sought, too. Raises the errors of `zoo.load`.
    """
    config = read_shape(source)
    starts = starts_by_cost(config, recipes, place)
    seed = recipes[COSTS[0]][0].seed
    vit = read_model(zoo.load(source, seed=seed), source.pretrained_cfg)
    bar = tqdm(total=len(COSTS) * POINTS, unit="point", disable=None if progress else True)
    with bar:
        frontier = Frontier(starts, lambda space: _searcher(vit, space), bar.set_description)
        points: dict[str, Point] = {}
        for name in COSTS:
            found = frontier.points(name)
            points |= {f"{name}-{i}": point for i, point in enumerate(found)}
            best = None if most is None else frontier.cheapest(name, most, found)
            if best is not None:
                points[f"{name}-cheapest"] = best
            bar.update(POINTS)
    found = {name: point.recipe for name, point in points.items()}
    shown = [
        {
            "recipe": name,
            "bits": name_scheme(config, plan_scheme(config, found[name])),
            **point.describe(),
        }
        for name, point in points.items()
    ]
    return {
        "model": source.timm_name,
        "images": frontier.images,
        "seed": seed,
        "max_kl": most,
        "latency": _circumstances(starts["latency"][0].table("latency"), place),
        "points": shown,
    }, found


def _train(source: Source, space: Space, budgets: Sequence[Budget], progress: bool) -> Found:
    """By Q-ViT; the user's images are looked at before any weights."""
    seed = space.recipe.seed
    sample = draw_sample(read_shape(source), space.recipe, source.pretrained_cfg)
    training = Training(penalty=None if sample.labels is None else PENALTY)
    vit = read_model(zoo.load(source, seed=seed), source.pretrained_cfg)
    with tqdm(total=training.steps, unit="step", disable=None if progress else True) as bar:

        def note(loss: float) -> None:
            bar.set_postfix({"loss": f"{loss:.3g}"}, refresh=False)
            bar.update()

        bits = train_bits(vit, space, sample, budgets, training, seed=seed, note=note)
    return _searcher(vit, space).judge(fit(bits, budgets), budgets)


def make_searcher(source: Source, space: Space) -> Searcher:
    """With the weights of a source and dead leaves, by the seed of the space's recipe."""
    vit = read_model(zoo.load(source, seed=space.recipe.seed), source.pretrained_cfg)
    return _searcher(vit, space)


def _searcher(vit: ViT, space: Space) -> Searcher:
    seed = space.recipe.seed
    images = draw_pictures(vit.config, IMAGES, torch.Generator().manual_seed(seed))
    return Searcher(vit, space, images, seed=seed, settings=Settings())


def _circumstances(table: CostTable, place: Place | None) -> dict[str, Any]:
    """How a latency is known."""
    return {"known": table.origin, **_where(place)} if table.origin else {}


def _where(place: Place | None) -> dict[str, Any]:
    where = place or Place()
    return {"on": where.name, "batch": where.batch}
