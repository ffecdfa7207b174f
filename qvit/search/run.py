"""From a source, a recipe and limits to the recipe whose layers have the bits that were found."""

from collections.abc import Mapping
from typing import Any

import torch

from qvit import zoo
from qvit.models.config import ViTConfig
from qvit.models.timm_import import read_config, read_model
from qvit.recipe import MAX_BITS, Recipe
from qvit.search.allocation import Space
from qvit.search.budgets import Budget
from qvit.search.costs import bitops_table, size_table
from qvit.search.descent import Searcher, Settings
from qvit.synthesis.leaves import draw_pictures
from qvit.zoo import Source

TABLES = {"size": size_table, "bitops": bitops_table}
_IMAGES = 64  # dead leaves


def plan_search(source: Source, recipe: Recipe, limits: Mapping[str, float]) -> dict[str, Any]:
    """What a search would choose among, without weights: the number of choices, and of each budget the limit and the
    smallest and largest cost that is possible. Raises what `allocate` raises.
    """
    config = _config_of(source)
    space = _space_of(config, recipe, limits)
    budgets = _budgets_of(config, space, limits)
    whole = space.uniform(MAX_BITS)
    return {
        "choices": len(space.choices),
        "images": _IMAGES,
        "budgets": {
            b.table.name: {
                "limit": b.limit,
                "smallest": b.table.smallest,
                "largest": b.table.total(whole),
            }
            for b in budgets
        },
    }


def allocate(
    source: Source, recipe: Recipe, limits: Mapping[str, float]
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with bits for every layer that it leaves open, and what is known of them.

    limits: By name, "size" in bytes of model.safetensors, "bitops" of an image. Bits of activations are searched where
    one of them depends on these, and are the recipe's elsewhere. Images are dead leaves: nothing is read.

    Raises UsageError for a limit that nothing meets, before any weights are read, and the errors of `zoo.load`.
    """
    config = _config_of(source)
    space = _space_of(config, recipe, limits)
    budgets = _budgets_of(config, space, limits)
    vit = read_model(zoo.load(source, seed=recipe.seed), source.pretrained_cfg)
    generator = torch.Generator().manual_seed(recipe.seed)
    images = draw_pictures(config, _IMAGES, generator)
    searcher = Searcher(vit, space, images, seed=recipe.seed, settings=Settings())
    found = searcher.search(budgets)
    known = {
        "kl": round(found.divergence, 4),
        "kl_uniform": round(found.uniform, 4),
        **{b.table.name: {"limit": b.limit, "found": b.table.total(found.bits)} for b in budgets},
    }
    return space.recipe_of(found.bits), known


def _config_of(source: Source) -> ViTConfig:
    with torch.device("meta"):
        return read_config(zoo.build(source), source.pretrained_cfg)


def _space_of(config: ViTConfig, recipe: Recipe, limits: Mapping[str, float]) -> Space:
    return Space.of(config, recipe, activations="bitops" in limits)


def _budgets_of(config: ViTConfig, space: Space, limits: Mapping[str, float]) -> list[Budget]:
    budgets = [Budget(TABLES[name](config, space), limit) for name, limit in limits.items()]
    for budget in budgets:
        budget.check()
    return budgets
