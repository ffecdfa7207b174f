"""What `--bits auto` is asked for, to be compared with bits that are the same everywhere: their costs."""

from qvit.models.config import ViTConfig
from qvit.recipe import Recipe
from qvit.search.allocation import Space
from qvit.search.start import make_cost_table, preset_starts

COSTS = ("size", "bitops")


def limits_of_uniform(config: ViTConfig, bits: int) -> dict[str, float]:
    """Bytes and BitOps of the preset of so many bits, which has others at both ends and in the attention products."""
    preset = Recipe.preset("qvit", weight_bits=bits, activation_bits=bits)
    space = Space.of(config, preset.with_open_ends())
    uniform = space.usual(bits)
    return {name: make_cost_table(name, config, space, None).whole(uniform) for name in COSTS}


def starts_of(seed: int) -> list[Recipe]:
    """The recipes that a search under such limits begins with."""
    return [recipe.override([f"seed={seed}"]) for recipe in preset_starts("qvit", COSTS)]
