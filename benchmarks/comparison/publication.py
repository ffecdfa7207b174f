"""A publication's recipe run as published: its images, its own static quantizers, its training."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.comparison.subjects import Subject
from qvit.distillation import Pool
from qvit.distillation.stage import makes_own_images, train
from qvit.errors import UsageError
from qvit.models.networks import Network
from qvit.models.student import Student
from qvit.models.vit import ViT
from qvit.recipe import PUBLICATIONS, Recipe
from qvit.recipe.synthesis import ATTENTIVE
from qvit.synthesis import synthesize


@dataclass(frozen=True, slots=True)
class Followed:
    """What came of a recipe.

    Attributes:
        made: What `synthesize` returns; None where images are made on the way.
        calibrated: What was seen of the student before its training; None where images are made on the way, whose
            student has no ranges until training begins.
        trained: What training returns, without a game's trace; None for calibration alone.
        result: What was seen of the student in the end.
    """

    made: dict[str, Any] | None
    calibrated: dict[str, Any] | None
    trained: dict[str, Any] | None
    result: dict[str, Any]


def follow(
    tested: Subject,
    recipe: Recipe,
    images: Path,
    training: Path,
    look: Callable[[Student], dict[str, Any]],
) -> Followed:
    """Make a student as a recipe says; an interrupted run is continued by the same call, and ends in the same bits.

    Args:
        tested: The float model.
        recipe: With images; calibration alone, if it trains nothing.
        images: Folder of the images, if they are made first.
        training: Folder of state and log, and of images that are made on the way.
        look: Says what there is to say about a student.

    Raises:
        UsageError: The model is none for the recipe, or a folder holds another run.
        InputError: A folder's files are damaged.
        QvitError: A loss is not finite for too long.
    """
    check_fits(recipe, tested)
    assert recipe.synthesis is not None
    made = pool = calibrated = None
    if not makes_own_images(recipe):
        made = synthesize(
            tested.source,
            recipe.synthesis,
            images,
            seed=recipe.seed,
            device=tested.device,
            progress=False,
        )
        pool = Pool.read(images)
    torch.manual_seed(recipe.seed)
    student = tested.student(recipe)
    if pool is not None:
        tested.calibrate(student, pool.images)
        calibrated = look(student)
    if recipe.distillation is None:
        assert calibrated is not None
        return Followed(made, calibrated, None, calibrated)
    trained = train(
        tested.source, tested.network, tested.teacher, student, recipe, images, training, progress=False
    )  # fmt: skip
    trained.pop("path")
    return Followed(made, calibrated, trained, look(student))


def fits(recipe: Recipe, network: Network) -> bool:
    """Whether a network has what the recipe's images and training look at: attention, for most of them.

    A game has BatchNorm's statistics for it in a ResNet.
    """
    images, training = recipe.synthesis, recipe.distillation
    attentive = images is not None and images.method in ATTENTIVE and recipe.game is None
    return isinstance(network, ViT) or not (attentive or (training and training.heads))


def check_fits(recipe: Recipe, tested: Subject) -> None:
    """Raises UsageError where `fits` says no, naming the recipes that do fit."""
    if fits(recipe, tested.network):
        return
    others = [name for name in PUBLICATIONS if fits(Recipe.preset(name), tested.network)]
    raise UsageError(
        f"{recipe.name} is about attention, which {tested.source.name} has none of; use {', '.join(others)}, or a ViT"
    )
