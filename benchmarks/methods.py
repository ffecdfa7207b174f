"""The data-free methods side by side: python benchmarks/methods.py --model demo_vit --budget demo [--seed 0 ...].

Every row has the same images to spend, the same steps, the same quantizers and the same real images to be measured on;
only where the training images come from, or how the student learns from them, differs. One JSON a cell, so that a run
can stop anywhere and go on. Results of --split dev are for choosing; those of --split test are what is reported.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path[:0] = [
    str(Path(__file__).resolve().parent.parent),
    str(Path(__file__).resolve().parent.parent / "kernels"),
]

import click  # noqa: E402 - after the tree is on the path, as for all that comes later
import torch  # noqa: E402

from benchmarks import cells  # noqa: E402
from benchmarks.comparison.budgets import BUDGETS, Budget  # noqa: E402
from benchmarks.comparison.images import pool_of  # noqa: E402
from benchmarks.comparison.orders import orders_table  # noqa: E402
from benchmarks.comparison.rows import (  # noqa: E402
    RECONSTRUCTION,
    TOGETHER,
    Row,
    recipe_of,
    reconstruction_of,
    rows,
    training_of,
)
from benchmarks.comparison.subjects import (  # noqa: E402
    SPLITS,
    Subject,
    ending,
    judge,
    softmax_reach,
    subject,
)
from benchmarks.comparison.table import table  # noqa: E402
from benchmarks.comparison.together import train_together  # noqa: E402
from qvit.distillation import Pixels, Pool, distil  # noqa: E402
from qvit.distillation.reconstruction import reconstruct  # noqa: E402
from qvit.errors import QvitError  # noqa: E402
from qvit.models.student import Student  # noqa: E402
from qvit.models.vit import ViT  # noqa: E402
from qvit.models.vit_students import SimulatedStudent, StaticStudent  # noqa: E402
from qvit.recipe import Reconstruction  # noqa: E402


@click.command()
@click.option("--model", default="demo_vit", show_default=True)
@click.option("--budget", type=click.Choice(tuple(BUDGETS)), default="demo", show_default=True)
@click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2), show_default=True)
@click.option("--split", type=click.Choice(SPLITS), default="test", show_default=True)
@click.option("--device", type=click.Choice(("cpu", "cuda")), default="cpu", show_default=True)
@click.option("--only", multiple=True, metavar="WORD", help="Rows whose name contains a word.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the JSON files.")
@click.option("--seconds", default=0.0, help="Begin no cell after so long; 0: no limit.")
@click.option("--stored", is_flag=True, help="Measure nothing; a table of what the folder holds.")
def main(
    model: str,
    budget: str,
    seeds: tuple[int, ...],
    split: str,
    device: str,
    only: tuple[str, ...],
    out: Path | None,
    seconds: float,
    stored: bool,
) -> None:
    """Measure what the output folder does not hold yet, and print a table of all of it."""
    folder = out or cells.ROOT / "benchmarks" / "results" / cells.machine_name() / "methods"
    wanted = planned(model, budget, seeds, split, only, seconds, device)
    if stored:
        wanted = (cell for cell in wanted if (folder / f"{cell[0]}.json").is_file())
    try:
        found = cells.measure(wanted, folder)
    except QvitError as error:
        raise click.ClickException(str(error)) from error
    print(f"{table(found)}\n\n{orders_table(found)}".strip())


def planned(
    model: str,
    budget: str,
    seeds: tuple[int, ...],
    split: str = "test",
    only: tuple[str, ...] = (),
    seconds: float = 0.0,
    device: str = "cpu",
) -> Iterator[cells.Cell]:
    """A cell a row and seed; all rows of a seed before the next one."""
    started = time.monotonic()
    convolutional = not isinstance(subject(model, device).network, ViT)
    for seed in seeds:
        for row in rows(convolutional):
            if only and not any(word in row.name for word in only):
                continue
            if seconds and time.monotonic() - started > seconds:
                return
            name = f"{model}-{budget}-{row.name}-{split}-{ending(seed, device)}"
            yield name, lambda row=row, seed=seed: measure(model, budget, row, seed, split, device)


def measure(
    model: str, budget_name: str, row: Row, seed: int, split: str, device: str = "cpu"
) -> dict[str, Any]:
    """One cell."""
    tested, budget = subject(model, device), BUDGETS[budget_name]
    recipe = recipe_of(row, seed)
    torch.manual_seed(seed)
    student = tested.student(recipe)
    training = trained = None
    start = time.perf_counter()
    if row.images in TOGETHER:
        name = f"{model}-{budget_name}-{row.name}-{ending(seed, device)}"
        images, trained = train_together(tested, student, row.images, budget, name, seed)
    else:
        pool, images = pool_of(tested, row.images, budget_name, budget, seed)
        tested.calibrate(student, pool.images)
        training = training_of(row, budget, len(pool))
        start = time.perf_counter()  # the images have their own
        if row.training == RECONSTRUCTION:
            training, trained = _reconstruct(tested, student, pool, budget, seed)
        elif training is not None:
            cfg = tested.source.pretrained_cfg
            pixels = Pixels(cfg["mean"], cfg["std"])
            trained = distil(
                tested.teacher, student, pool, training, seed=seed, pixels=pixels, progress=False
            )
    seconds = time.perf_counter() - start
    return {
        "model": model,
        "budget": {"name": budget_name, **asdict(budget)},
        "row": asdict(row),
        "seed": seed,
        "split": split,
        "device": device,
        **judge(student, model, split, budget.evaluated, device),
        "images": images,
        "distillation": None if training is None else asdict(training),
        "trained": trained,
        "static": None if recipe.static is None else asdict(recipe.static),
        "softmax_reach": softmax_reach(student),
        "seconds": round(seconds, 1),
    }


def _reconstruct(
    tested: Subject, student: Student, pool: Pool, budget: Budget, seed: int
) -> tuple[Reconstruction, dict[str, Any]]:
    """Learn the rounding of a ViT's weights; the settings, and what came of each block."""
    assert isinstance(student, SimulatedStudent | StaticStudent)
    assert isinstance(tested.network, ViT)
    settings = reconstruction_of(budget, len(pool))
    return settings, {"blocks": reconstruct(tested.network, student.vit, pool, settings, seed=seed)}


if __name__ == "__main__":
    main()
