"""Methods whose images depend on the student: PSAQ-ViT V2's game, and MaskAQ's images that are made anew."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.comparison.budgets import Budget
from benchmarks.comparison.images import SCRATCH
from benchmarks.comparison.subjects import Subject
from qvit.distillation import Pixels
from qvit.distillation.game import Rules, play
from qvit.distillation.renewal import distil_renewed
from qvit.models.student import Student
from qvit.recipe import Distillation, Synthesis
from qvit.recipe.game import Game, game_images

_TURNS = 10  # rounds of a game, which divide the iterations and the steps
_SPANS = 3  # times that MaskAQ makes images


def train_together(
    subject: Subject, student: Student, method: str, budget: Budget, name: str, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train a student with images that are made for it, within a budget.

    Args:
        subject: The float model.
        student: Not calibrated yet.
        method: "psaq-v2" or "maskaq".
        budget: Shared with all other methods: so many images, iterations of each and steps of the student in all.
        name: Of the cell, for the folder that it goes on in.
        seed: Of everything random.

    Returns:
        How the images were made, and what training returns.
    """
    out = SCRATCH / "together" / name
    if method == "psaq-v2":
        return _play(subject, student, budget, out, seed)
    return _renew(subject, student, budget, out, seed)


def iterations_of(method: str, budget: Budget) -> int:
    """As the budget has it, or as the method publishes it."""
    return budget.iterations or Synthesis.preset(method).iterations


def _play(
    subject: Subject, student: Student, budget: Budget, out: Path, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    # One batch takes part in a game, and a share of it is replaced: as many are made as other methods have.
    count = max(2, min(32, budget.images))
    half = max(1, iterations_of("psaq", budget) // 2)
    images = game_images(images=count, batch=count, iterations=half)
    turns = Game(
        rounds=_TURNS,
        sample_steps=max(1, half // _TURNS),
        student_steps=max(1, budget.steps // _TURNS),
        refresh_every=3,
    )
    training = Distillation.preset("psaq-v2", batch=min(budget.batch, count))
    found = play(
        subject.network, student, Rules(turns, images, training), seed=seed, folder=out, progress=False
    )  # fmt: skip
    facts = {"method": "psaq-v2", "images": found["images"], "settings": asdict(images)}
    return {**facts, "game": asdict(turns), "distillation": asdict(training)}, found


def _renew(
    subject: Subject, student: Student, budget: Budget, out: Path, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    images = Synthesis.preset(
        "maskaq",
        images=max(2, budget.images // _SPANS),
        batch=min(budget.batch, max(2, budget.images // _SPANS)),
        iterations=iterations_of("maskaq", budget),
    )
    trained = images.images - max(1, round(0.1 * images.images))
    batch = min(budget.batch, trained)
    epochs = max(_SPANS, round(budget.steps / max(1, trained // batch)))
    training = replace(Distillation.preset("maskaq", batch=batch), epochs=epochs, renew=0)
    cfg = subject.source.pretrained_cfg
    found = distil_renewed(
        subject.source,
        subject.teacher,
        student,
        images,
        training,
        every=-(-epochs // _SPANS),
        seed=seed,
        folder=out,
        pixels=Pixels(cfg["mean"], cfg["std"]),
        progress=False,
    )
    facts = {"method": "maskaq", "images": found["images"], "settings": asdict(images)}
    return {**facts, "distillation": asdict(training)}, found
