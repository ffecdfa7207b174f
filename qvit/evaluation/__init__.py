"""How accurate a model is, and how near a low-bit model stays to its float original."""

from qvit.evaluation.accuracy import Evaluation, Predictions, compare, divergences, predict
from qvit.evaluation.float_cache import cache_float_logits, cached_float_logits

__all__ = [
    "Evaluation",
    "Predictions",
    "cache_float_logits",
    "cached_float_logits",
    "compare",
    "divergences",
    "predict",
]
