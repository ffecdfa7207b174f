"""Publications in their own setting: python benchmarks/publications.py --recipe paper-mimiq --budget 0.01 [--w 4 ...].

Each recipe of qvit/recipe/publications.py as it is: its count of images, iterations and epochs, or a share of all of
them, its training, and its own static quantizers, which `qvit quantize` refuses because nothing but simulation computes
them. methods.py is where methods have the same to spend, and everything else the same. Without --recipe, all that the
model fits: a ResNet has no attention, which paper-psaq, paper-mimiq and paper-maskaq are about.

One JSON a cell. Images, state and log are in out/methods/publications, so that a cell that was stopped goes on, too.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[:0] = [
    str(Path(__file__).resolve().parent.parent),
    str(Path(__file__).resolve().parent.parent / "kernels"),
]

import click  # noqa: E402 - after the tree is on the path, as for all that comes later

from benchmarks import cells  # noqa: E402
from benchmarks.comparison.images import SCRATCH  # noqa: E402
from benchmarks.comparison.publication import Followed, check_fits, fits, follow  # noqa: E402
from benchmarks.comparison.subjects import (  # noqa: E402
    SPLITS,
    ending,
    judge,
    softmax_reach,
    subject,
)
from benchmarks.comparison.table import is_reconstructed  # noqa: E402
from qvit.errors import QvitError  # noqa: E402
from qvit.models.student import Student  # noqa: E402
from qvit.recipe import PUBLICATIONS, Recipe  # noqa: E402

_EVALUATED = 500


@click.command()
@click.option("--recipe", "names", type=click.Choice(tuple(PUBLICATIONS)), multiple=True)
@click.option("--model", default="demo_vit", show_default=True)
@click.option("--w", "weight_bits", default=4, show_default=True, help="Bits of the weights.")
@click.option("--a", "act_bits", default=4, show_default=True, help="Bits of the activations.")
@click.option(
    "--budget", default="0.01", show_default=True, metavar="NAME|SHARE",
    help="quick, standard, full, or a share of the published images, iterations and epochs.",
)  # fmt: skip
@click.option("--seed", "seeds", type=int, multiple=True, default=(0,), show_default=True)
@click.option("--split", type=click.Choice(SPLITS), default="test", show_default=True)
@click.option("--device", type=click.Choice(("cpu", "cuda")), default="cpu", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the JSON files.")
def main(
    names: tuple[str, ...],
    model: str,
    weight_bits: int,
    act_bits: int,
    budget: str,
    seeds: tuple[int, ...],
    split: str,
    device: str,
    out: Path | None,
) -> None:
    """Run what the output folder does not hold yet, and print a table of all of it."""
    folder = out or cells.ROOT / "benchmarks" / "results" / cells.machine_name() / "publications"
    try:
        wanted = planned(
            model, names, (weight_bits, act_bits), budget, seeds, split=split, device=device
        )
        print(table(cells.measure(wanted, folder)))
    except QvitError as error:
        raise click.ClickException(str(error)) from error


def planned(
    model: str,
    names: Sequence[str],
    bits: tuple[int, int],
    budget: str,
    seeds: Sequence[int],
    *,
    split: str = "test",
    device: str = "cpu",
) -> Iterator[cells.Cell]:
    """A cell a recipe and seed; all recipes of a seed before the next one.

    Args:
        model: By alias.
        names: Of recipes; none for all that the model fits.
        bits: Of weights and of activations.
        budget: As `--budget` of `qvit quantize`.
        seeds: Of everything random.
        split: Of the images that results are measured on.
        device: "cpu" or "cuda".

    Raises:
        UsageError: A recipe does not fit the model, or bits or budget are impossible; before any work is done.
        RequirementError: There is no such device.
    """
    weight_bits, act_bits = bits
    recipes = [
        Recipe.preset(name, weight_bits=weight_bits, activation_bits=act_bits, budget=budget)
        for name in names or PUBLICATIONS
    ]
    tested = subject(model, device)
    if not names:
        recipes = [recipe for recipe in recipes if fits(recipe, tested.network)]
    for recipe in recipes:
        check_fits(recipe, tested)
    return _cells(model, recipes, seeds, split, device)


def _cells(
    model: str, recipes: Sequence[Recipe], seeds: Sequence[int], split: str, device: str
) -> Iterator[cells.Cell]:
    for seed in seeds:
        for recipe in recipes:
            scheme = recipe.scheme.lower()
            name = f"{model}-{recipe.name}-{scheme}-{recipe.budget}-{split}-{ending(seed, device)}"
            seeded = replace(recipe, seed=seed)
            yield name, lambda seeded=seeded: measure(model, seeded, split, device)


def measure(model: str, recipe: Recipe, split: str, device: str = "cpu") -> dict[str, Any]:
    """One cell."""
    tested = subject(model, device)
    name = f"{model}-{recipe.name}-{recipe.budget}-{ending(recipe.seed, device)}"
    folder = SCRATCH / "publications" / name
    continued = folder.exists()  # then nobody knows the seconds of what was there

    def look(student: Student) -> dict[str, Any]:
        found = judge(student, model, split, _EVALUATED, device)
        return {**found, "softmax_reach": softmax_reach(student)}

    start = time.perf_counter()
    found = follow(tested, recipe, folder / "images", folder / recipe.scheme.lower(), look)
    return {
        "model": model,
        "recipe": recipe.name,
        "scheme": recipe.scheme,
        "budget": recipe.budget,
        "seed": recipe.seed,
        "split": split,
        "device": device,
        **found.result,
        "calibrated": None if found.calibrated is None else found.calibrated["result"],
        "counts": _counts(recipe, found),
        "settings": recipe.to_dict(),
        "images": found.made and {k: v for k, v in found.made.items() if k != "path"},
        "trained": found.trained,
        "seconds": None if continued else round(time.perf_counter() - start, 1),
    }


def _counts(recipe: Recipe, found: Followed) -> dict[str, int | None]:
    """What was spent: images made in all and iterations of each, epochs (None in a game) and steps of the student."""
    assert recipe.synthesis is not None
    trained = found.trained or {"epochs": 0, "steps": 0}
    spans = trained.get("spans", [trained])
    return {
        "images": recipe.synthesis.images if found.made else trained["images"],
        "iterations": recipe.synthesis.iterations,
        "epochs": trained.get("epochs"),
        "steps": sum(span.get("steps", span.get("student_steps")) for span in spans),
    }


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown, a row a cell. top-1 and agreement in percent, KL in nats; "calibrated": top-1 before training."""
    heads = ["recipe", "scheme", "budget", "seed", "images", "iterations", "epochs", "steps"]
    heads += ["calibrated", "top-1", "95 % interval", "agreement", "KL", "seconds"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for cell in found:
        name, result, before = cell["recipe"], cell["result"], cell["calibrated"]
        ours = ", our reconstruction" if is_reconstructed(name) else ""
        low, high = result["top1_interval"]
        row = [f"{name}{ours}", cell["scheme"], cell["budget"], cell["seed"]]
        row += ["-" if count is None else count for count in cell["counts"].values()]
        row += ["-" if before is None else f"{before['top1']:.1f}", f"{result['top1']:.1f}"]
        row += [f"{low:.1f} to {high:.1f}", f"{result['agreement']:.1f}", f"{result['kl']:.3f}"]
        row += ["-" if cell["seconds"] is None else f"{cell['seconds']:.0f}"]
        lines.append(f"| {' | '.join(map(str, row))} |")
    if found:
        lines.append(f"\nThe float model: {found[0]['result']['float']['top1']:.1f}.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
