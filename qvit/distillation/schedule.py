"""Schedules: the rate and the share of crossed weights, over a run of any length."""

import math

from qvit.recipe import Distillation


def learning_rate(step: int, steps: int, settings: Distillation) -> float:
    """The rate of a step, counted from 0, of so many."""
    if settings.schedule == "cosine":
        fallen = 0.5 * (1 + math.cos(math.pi * step / steps))
        return settings.lr_final + (settings.lr - settings.lr_final) * fallen
    if settings.schedule == "steps":
        return settings.lr * settings.drop ** drops(step, steps, settings)
    return settings.lr


def crossing_share(step: int, steps: int, settings: Distillation) -> float:
    """The least share of integers that a step is to change (AIT: p falls where the rate does)."""
    return settings.inundation * settings.inundation_drop ** drops(step, steps, settings)


def drops(step: int, steps: int, settings: Distillation) -> int:
    """How many of the drops are behind a step."""
    return min(settings.drops, math.floor(step / (steps * settings.drop_every)))
