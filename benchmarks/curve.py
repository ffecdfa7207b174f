"""What a publication's recipe loses over its budget: `paper-mimiq` at W4A4, in its own static quantizers.

Shares are those of `--budget`: images, iterations and epochs shrink together, the latter two not below 50 and 4, which
all of a ViT-Tiny's but the last have. The longer points train on the largest share's images for more epochs. MimiQ's
whole budget is 10,000 images of 2000 iterations and 200 epochs, 125,000 steps. Every point keeps a tenth of its images
out, as the first ones did, which the recipe no longer does: the whole budget would be 112,400 steps here.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from benchmarks.cells import Cell
from benchmarks.comparison.images import SCRATCH
from benchmarks.comparison.publication import follow
from benchmarks.comparison.subjects import judge, subject
from benchmarks.sources import DEMO, VIT_TINY
from qvit.recipe import Recipe

RECIPE, BITS, SEED = "paper-mimiq", 4, 0
HOLDOUT = 0.1
_EVALUATED = 500


@dataclass(frozen=True, slots=True)
class Point:
    """A share of the published budget. longer: How many times its epochs are trained."""

    share: float
    longer: int = 1

    @property
    def recipe(self) -> Recipe:
        """The publication's, within this budget."""
        budget = f"{self.share:g}"
        recipe = Recipe.preset(RECIPE, weight_bits=BITS, activation_bits=BITS, budget=budget)
        assert recipe.distillation is not None
        epochs = self.longer * recipe.distillation.epochs
        training = replace(recipe.distillation, epochs=epochs, holdout=HOLDOUT)
        return replace(recipe, seed=SEED, distillation=training)


# A step of 16 images takes a core 1 to 2 s in synthesis and in training of a ViT-Tiny, a twelfth of it of demo_vit.
POINTS = {
    VIT_TINY: (Point(0.0032), Point(0.0064), Point(0.0128), Point(0.0256), Point(0.0256, 4), Point(0.0256, 16)),
    DEMO: (Point(0.0032), Point(0.0064), Point(0.0128), Point(0.0256), Point(0.0512), Point(0.1)),
}  # fmt: skip


def cells() -> Iterator[Cell]:
    """One a model and budget, small ones first; beside each budget's images what calibration makes of them alone."""
    for model, points in POINTS.items():
        for point in points:
            name = (
                f"curve-{model}-{RECIPE}-w{BITS}a{BITS}-{point.share:g}x{point.longer}-seed{SEED}"
            )
            yield name, partial(measure, model, point)


def measure(model: str, point: Point) -> dict[str, Any]:
    """One budget; its images stay in a folder outside of the repository, and are made once."""
    recipe = point.recipe
    images, training = recipe.synthesis, recipe.distillation
    assert images is not None
    assert training is not None
    folder = SCRATCH / "curve" / f"{model}-{point.share:g}"
    state = folder.with_name(f"{folder.name}-training-x{point.longer}")
    found = follow(subject(model), recipe, folder, state, lambda student: _judge(student, model))
    assert found.made is not None
    return {
        "model": model,
        "recipe": recipe.name,
        "share": point.share,
        "seed": SEED,
        "images": images.images,
        "iterations": images.iterations,
        "distillation": asdict(training),
        "calibrated": found.calibrated,
        "result": found.result,
        "measures": found.made["measures"],
        "trained": found.trained,
    }


def _judge(student: Callable[[Tensor], Any], model: str) -> dict[str, Any]:
    """On validation images, which nothing here is chosen by."""
    found = judge(student, model, "test", _EVALUATED)
    return {**found["result"], "each": found["each"]}


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, a row a budget; points of top-1 lost to the float model, with their 95 % interval, and KL in nats."""
    heads = ["model", "share", "images", "iterations", "epochs", "steps"]
    heads += [f"{what}, {when}" for when in ("calibrated", "trained") for what in ("lost", "KL")]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for cell in found:
        training = cell["trained"]
        row = [cell["model"], f"{cell['share']:.2%}", cell["images"], cell["iterations"]]
        row += [training["epochs"], training["steps"]]
        for result in (cell["calibrated"], cell["result"]):
            low, high = result["drop_interval"]
            row += [f"{result['drop']:.1f} ({low:.1f} to {high:.1f})", f"{result['kl']:.2f}"]
        lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(lines)
