"""What a search begins with: a recipe whose grids suit the bits that budgets leave, and the choices in it."""

from collections.abc import Iterable, Mapping, Sequence

from qvit.errors import UsageError
from qvit.models.config import ViTConfig
from qvit.recipe import MAX_BITS, Recipe
from qvit.search.allocation import Space
from qvit.search.budgets import Budget, check_budgets, first_within
from qvit.search.costs import CostTable, bitops_table, size_table
from qvit.search.latency import Place, latency_table

# Presets have finer grids at three bits and fewer, which take more of a file; from there to eight they are as at four.
_BITS = (4, 3)


def preset_starts(name: str, limits: Iterable[str], budget: str | None = None) -> list[Recipe]:
    """Recipes that `begin` may choose from, of a preset: bits of everything are left open, and those of activations at
    eight where the limits are of size alone. budget: As `Recipe.preset` has it.
    """
    inputs = {bits: bits if depend_on_inputs(limits) else MAX_BITS for bits in _BITS}
    presets = (
        Recipe.preset(name, weight_bits=bits, activation_bits=inputs[bits], budget=budget)
        for bits in _BITS
    )
    return [preset.with_open_ends() for preset in presets]


def depend_on_inputs(limits: Iterable[str]) -> bool:
    """Whether bits of activations count: a file holds nothing of them."""
    return bool(set(limits) - {"size"})


def begin(
    config: ViTConfig,
    recipes: Sequence[Recipe],
    limits: Mapping[str, float],
    place: Place | None = None,
    *,
    heads: bool = False,
) -> tuple[Space, list[Budget]]:
    """The choices that the first recipe leaves with whose own bits the budgets hold, and these budgets; where they hold
    with none, those of the last one that can meet them.

    limits: By name, see `make_cost_table`. heads: Whether weights of attention heads are choices of their own. Raises
    UsageError for limits that nothing meets, and for recipes that leave no choice.
    """
    found = []
    for recipe in recipes:
        space = Space.of(config, recipe, activations=depend_on_inputs(limits), heads=heads)
        budgets = [
            Budget(make_cost_table(name, config, space, place), limit)
            for name, limit in limits.items()
        ]
        found.append((space, budgets))
        if first_within(budgets, [space.usual(recipe.weights.bits)]) is not None:
            break
    while len(found) > 1 and not _can_meet(found[-1][1]):
        found.pop()
    space, budgets = found[-1]
    check_budgets(budgets)
    return space, budgets


def _can_meet(budgets: Sequence[Budget]) -> bool:
    try:
        check_budgets(budgets)
    except UsageError:
        return False
    return True


def make_cost_table(name: str, config: ViTConfig, space: Space, place: Place | None) -> CostTable:
    """Of "size", in bytes of model.safetensors, "bitops", of an image, or "latency", in seconds of a pass at `place`
    (None: here, one image).
    """
    if name == "latency":
        return latency_table(config, space, place or Place())
    return {"size": size_table, "bitops": bitops_table}[name](config, space)
