"""What a search begins with: a recipe whose grids suit the bits that budgets leave, and the choices in it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from qvit.errors import UsageError
from qvit.models.config import ViTConfig
from qvit.recipe import MAX_BITS, Recipe
from qvit.search.allocation import Space
from qvit.search.budgets import Budget, check_budgets, first_within
from qvit.search.costs import CostTable, bitops_table, size_table
from qvit.search.latency import Place, latency_table

# Bits of the presets that a search may begin with: three have finer grids of activations, where these have as few.
_BITS = (4, 3)


def preset_starts(name: str, limits: Iterable[str], budget: str | None = None) -> list[Recipe]:
    """Recipes that `begin` may choose from, of a preset: bits of everything are left open, and those of activations at
    eight where the limits are of size alone. No two differ in nothing but bits of weights. budget: As `Recipe.preset`
    has it.
    """
    found: list[Recipe] = []
    for bits in _BITS:
        inputs = bits if depend_on_inputs(limits) else MAX_BITS
        recipe = Recipe.preset(name, weight_bits=bits, activation_bits=inputs, budget=budget)
        recipe = recipe.with_open_ends()
        as_many = [replace(each, weights=replace(each.weights, bits=bits)) for each in found]
        if recipe not in as_many:
            found.append(recipe)
    return found


def depend_on_inputs(limits: Iterable[str]) -> bool:
    """Whether bits of activations count: a file holds nothing of them."""
    return bool(set(limits) - {"size"})


class Start:
    """The choices that a recipe leaves, and what they cost.

    place: Where latency counts, see `make_cost_table`.
    """

    def __init__(self, config: ViTConfig, space: Space, place: Place | None = None) -> None:
        self.space = space
        self._config, self._place = config, place
        self._tables: dict[str, CostTable] = {}

    def table(self, name: str) -> CostTable:
        """Of "size", "bitops" or "latency"; made when it is first asked for."""
        if name not in self._tables:
            self._tables[name] = make_cost_table(name, self._config, self.space, self._place)
        return self._tables[name]

    def budgets(self, limits: Mapping[str, float]) -> list[Budget]:
        """Of limits by name."""
        return [Budget(self.table(name), limit) for name, limit in limits.items()]


def starts_by_cost(
    config: ViTConfig, recipes: Mapping[str, Sequence[Recipe]], place: Place | None = None
) -> dict[str, list[Start]]:
    """What limits on one cost may begin with, of the recipes that each cost has: a start for each of these, and the
    same one for all costs that have it. Bits of activations are choices where one of those costs depends on them.
    """
    starts: list[tuple[Recipe, Start]] = []
    found: dict[str, list[Start]] = {}
    for name, own in recipes.items():
        found[name] = []
        for recipe in own:
            start = next((start for known, start in starts if known == recipe), None)
            if start is None:
                limits = [each for each, others in recipes.items() if recipe in others]
                activations = depend_on_inputs(limits)
                start = Start(config, Space.of(config, recipe, activations=activations), place)
                starts.append((recipe, start))
            found[name].append(start)
    return found


def begin(
    config: ViTConfig,
    recipes: Sequence[Recipe],
    limits: Mapping[str, float],
    place: Place | None = None,
    *,
    heads: bool = False,
) -> tuple[Space, list[Budget]]:
    """The choices of the recipe that suits limits (`choose_start`), and the budgets that these are.

    limits: By name, see `make_cost_table`. heads: Whether weights of attention heads are choices of their own. Raises
    UsageError for limits that nothing meets, and for recipes that leave no choice.
    """
    activations = depend_on_inputs(limits)
    spaces = [Space.of(config, r, activations=activations, heads=heads) for r in recipes]
    start = choose_start([Start(config, space, place) for space in spaces], limits)
    return start.space, start.budgets(limits)


def choose_start(starts: Sequence[Start], limits: Mapping[str, float]) -> Start:
    """The first with whose recipe's own bits the limits are met; where they are with none, the last one that can meet
    them. Raises UsageError for limits that nothing meets.
    """
    possible = []
    for start in starts:
        possible.append(start)
        budgets, space = start.budgets(limits), start.space
        if first_within(budgets, [space.usual(space.recipe.weights.bits)]) is not None:
            break
    while len(possible) > 1 and not _can_meet(possible[-1].budgets(limits)):
        possible.pop()
    check_budgets(possible[-1].budgets(limits))
    return possible[-1]


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
