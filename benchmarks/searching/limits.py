"""What `--bits auto` is asked for, to be compared with bits that are the same everywhere: their costs."""

from collections.abc import Iterable

from qvit.models.config import ViTConfig
from qvit.recipe import MAX_BITS, Recipe
from qvit.search.allocation import Space
from qvit.search.start import make_cost_table, preset_starts


def limits_of_uniform(
    config: ViTConfig, weight_bits: int, activation_bits: int
) -> dict[str, float]:
    """Bytes and BitOps of the preset of so many bits, which has others at both ends and in the attention products;
    bytes alone where activations have 8 bits, which they keep.
    """
    if activation_bits not in (weight_bits, MAX_BITS):
        raise ValueError(
            f"W{weight_bits}A{activation_bits}: activations of as many bits, or of {MAX_BITS}"
        )
    preset = Recipe.preset("qvit", weight_bits=weight_bits, activation_bits=activation_bits)
    space = Space.of(config, preset.with_open_ends(), activations=activation_bits < MAX_BITS)
    uniform = space.usual(weight_bits)
    names = ("size",) if activation_bits == MAX_BITS else ("size", "bitops")
    return {name: make_cost_table(name, config, space, None).whole(uniform) for name in names}


def starts_of(seed: int, limits: Iterable[str]) -> list[Recipe]:
    """The recipes that a search under such limits begins with."""
    return [recipe.override([f"seed={seed}"]) for recipe in preset_starts("qvit", limits)]
