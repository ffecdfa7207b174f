"""Recipes: frozen values that say how a model is quantized. Defaults live here and nowhere else.

A recipe is resolved when it is made: nothing in it means "automatic", so `recipe.yaml` in a checkpoint replays
to the same bytes. It round-trips through YAML and refuses keys it does not know.
"""

from qvit.recipe.bits import (
    MAX_BITS,
    MAX_GROUPED_BITS,
    MIN_BITS,
    Bits,
    check_matches,
    find_bits,
    keep_wide,
)
from qvit.recipe.distillation import DISTILLATIONS, Distillation
from qvit.recipe.parts import RANGES, Activations, Attention, Transforms, Weights
from qvit.recipe.presets import ENDS
from qvit.recipe.publications import BUDGETS, CUSTOM, PUBLICATIONS
from qvit.recipe.quantization import RESIDUALS, Recipe, load_recipe, preset_names
from qvit.recipe.reconstruction import Reconstruction
from qvit.recipe.static import Static
from qvit.recipe.synthesis import METHODS, PRECISIONS, Synthesis

__all__ = [
    "BUDGETS",
    "CUSTOM",
    "DISTILLATIONS",
    "ENDS",
    "MAX_BITS",
    "MAX_GROUPED_BITS",
    "METHODS",
    "MIN_BITS",
    "PRECISIONS",
    "PUBLICATIONS",
    "RANGES",
    "RESIDUALS",
    "Activations",
    "Attention",
    "Bits",
    "Distillation",
    "Recipe",
    "Reconstruction",
    "Static",
    "Synthesis",
    "Transforms",
    "Weights",
    "check_matches",
    "find_bits",
    "keep_wide",
    "load_recipe",
    "preset_names",
]
