"""Distillation as a recipe has it: images from a folder, or made on the way, or a game, into a student's weights."""

from pathlib import Path
from typing import Any

from qvit.distillation.game import Rules, play
from qvit.distillation.loop import Pixels, distil
from qvit.distillation.pool import Pool
from qvit.distillation.renewal import distil_renewed
from qvit.errors import UsageError
from qvit.models.networks import Network
from qvit.models.student import Student, Teacher
from qvit.recipe import Recipe
from qvit.zoo import Source


def train(
    source: Source,
    network: Network,
    teacher: Teacher,
    student: Student,
    recipe: Recipe,
    images: Path,
    folder: Path,
    *,
    progress: bool,
) -> dict[str, Any]:
    """Train a student after its float model, in place, as a recipe says.

    Args:
        source: Where the float model comes from, for its normalisation and for images that are made on the way.
        network: The float model.
        teacher: The same, as students see it.
        student: With ranges; without those of activations, which it may have, where images are made on the way.
        recipe: With `distillation`; its images are made first, or on the way, see `makes_own_images`.
        images: Where `synthesize` has put them, if they are made first.
        folder: For state and log; what it holds of the same run is continued.
        progress: Show a bar on stderr, if that is a terminal.

    Returns:
        What `distil` or `play` does, without the trace of a game, and the folder's `path`.

    Raises:
        UsageError: The recipe trains nothing, or the folder holds another run.
        InputError: Images or the folder's files are damaged.
        QvitError: The loss is not finite for too long.
    """
    if recipe.distillation is None or recipe.synthesis is None:
        raise UsageError("the recipe trains nothing: turn that on with --set distillation=METHOD")
    pixels = Pixels(source.pretrained_cfg["mean"], source.pretrained_cfg["std"])
    if recipe.game is not None:
        rules = Rules(recipe.game, recipe.synthesis, recipe.distillation)
        found = play(network, student, rules, seed=recipe.seed, folder=folder, progress=progress)
        found.pop("trace")
    elif recipe.distillation.renew:
        found = distil_renewed(
            source,
            teacher,
            student,
            recipe.synthesis,
            recipe.distillation,
            every=recipe.distillation.renew,
            seed=recipe.seed,
            folder=folder,
            pixels=pixels,
            progress=progress,
        )
    else:
        found = distil(
            teacher,
            student,
            Pool.read(images),
            recipe.distillation,
            seed=recipe.seed,
            pixels=pixels,
            folder=folder,
            progress=progress,
        )
    return {"path": str(folder), **found}


def makes_own_images(recipe: Recipe) -> bool:
    """Whether images are made while the student is trained: in a game, or anew every so many epochs."""
    return recipe.game is not None or bool(recipe.distillation and recipe.distillation.renew)


def plan_training(recipe: Recipe) -> dict[str, Any] | None:
    """What `train` will do, for a dry run: the method, its images, and the steps of the student; None for nothing."""
    training, images = recipe.distillation, recipe.synthesis
    if training is None or images is None:
        return None
    if recipe.game is not None:
        steps = recipe.game.rounds * recipe.game.student_steps
        return {"method": training.method, "rounds": recipe.game.rounds, "steps": steps}
    held_out = max(1, round(training.holdout * images.images)) if training.holdout else 0
    trained = images.images - held_out
    steps = training.epochs * max(1, trained // min(training.batch, max(1, trained)))
    return {"method": training.method, "images": trained, "held_out": held_out, "steps": steps}
