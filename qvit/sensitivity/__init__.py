"""Which layers low bits hurt, found without data: the divergence that each brings, and which to keep at 8 bits."""

from qvit.sensitivity.measuring import Request, measure_sensitivity, recipe_of

__all__ = ["Request", "measure_sensitivity", "recipe_of"]
