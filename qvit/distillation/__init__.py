"""Distillation: a low-bit student learns from its float teacher, on images that nobody took."""

from qvit.distillation.loop import Pixels, distil
from qvit.distillation.pool import Pool
from qvit.distillation.processes import Processes, joined
from qvit.distillation.trainer import Trainer

__all__ = ["Pixels", "Pool", "Processes", "Trainer", "distil", "joined"]
