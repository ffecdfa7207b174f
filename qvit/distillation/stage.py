"""Distillation as a stage of the pipeline: images from a folder, or a game, into the weights of a folded ViT."""

from pathlib import Path
from typing import Any

from qvit.distillation.game import Rules, play
from qvit.distillation.loop import Pixels, distil
from qvit.distillation.pool import Pool
from qvit.distillation.renewal import distil_renewed
from qvit.errors import UsageError
from qvit.models.vit import ViT
from qvit.models.vit_students import SimulatedStudent
from qvit.models.watching import FloatTeacher
from qvit.recipe import Recipe
from qvit.zoo import Source


def train(
    source: Source,
    vit: ViT,
    student: SimulatedStudent,
    recipe: Recipe,
    images: Path,
    folder: Path,
    *,
    progress: bool,
) -> dict[str, Any]:
    """Train a student after its float model, in place, as a recipe says.

    Args:
        source: Where the float model comes from, for images that are made on the way.
        vit: The float model.
        student: Of its folded copy, with ranges.
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
    if recipe.game is not None:
        rules = Rules(recipe.game, recipe.synthesis, recipe.distillation)
        found = play(vit, student, rules, seed=recipe.seed, folder=folder, progress=progress)
        found.pop("trace")
    elif recipe.distillation.renew:
        found = distil_renewed(
            source,
            FloatTeacher(vit),
            student,
            recipe.synthesis,
            recipe.distillation,
            every=recipe.distillation.renew,
            seed=recipe.seed,
            folder=folder,
            pixels=Pixels(vit.config.mean, vit.config.std),
            progress=progress,
        )
    else:
        found = distil(
            FloatTeacher(vit),
            student,
            Pool.read(images),
            recipe.distillation,
            seed=recipe.seed,
            pixels=Pixels(vit.config.mean, vit.config.std),
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
