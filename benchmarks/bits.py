"""Found bits beside uniform, random and greedy ones of the same size and BitOps: python benchmarks/bits.py --bits 3.

Bits are found without data; all of imagenet/train judges a ViT-Tiny, rendered pictures judge demo_vit. One JSON a cell,
so that a run can stop anywhere and go on. Weights are at their nearest codes, but for the cells "rounded", which are
what `qvit quantize` would write.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path[:0] = [
    str(Path(__file__).resolve().parent.parent),
    str(Path(__file__).resolve().parent.parent / "kernels"),
]

import click  # noqa: E402 - after the tree is on the path, as for all that comes later
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks import cells  # noqa: E402
from benchmarks.development import BOTH, IMAGES_FROM, expected, predict  # noqa: E402
from benchmarks.searching.limits import limits_of_uniform, starts_of  # noqa: E402
from benchmarks.searching.rivals import draw_random, measure_sensitivities, penalized  # noqa: E402
from benchmarks.searching.table import table  # noqa: E402
from benchmarks.sources import DEMO, VIT_TINY, float_vit, source  # noqa: E402
from qvit import evaluation, pipeline  # noqa: E402
from qvit.deployment import QuantViT  # noqa: E402
from qvit.search.allocation import Space  # noqa: E402
from qvit.search.budgets import Budget, fit  # noqa: E402
from qvit.search.descent import Searcher, Settings, descend  # noqa: E402
from qvit.search.exchange import loss_of  # noqa: E402
from qvit.search.greedy import descend_greedily  # noqa: E402
from qvit.search.run import IMAGES as SEARCHED  # noqa: E402
from qvit.search.run import make_searcher  # noqa: E402
from qvit.search.sample import draw_sample  # noqa: E402
from qvit.search.start import begin  # noqa: E402
from qvit.search.trained import PENALTY, Training, train_bits  # noqa: E402

IMAGES = {VIT_TINY: 1000, DEMO: 400}  # that judge
# By HDX, by the published penalty, and bits of heads.
TRAINED = {"qvit": None, "qvit-penalty": PENALTY, "qvit-heads": None}
SENSITIVITY = "sensitivity"  # greedy, by what each tensor's bits cost alone, measured
HEADS = "heads"  # found, of every attention head's weights
_FOUND_ALONE = (*TRAINED, SENSITIVITY, HEADS)  # by cells of their own
RANDOM, RANKED = 20, 10  # allocations, and the images that rank them; the best is judged by all


@click.command()
@click.option("--model", type=click.Choice(list(IMAGES)), default=VIT_TINY, show_default=True)
@click.option("--bits", "widths", type=int, multiple=True, default=(3, 4), show_default=True)
@click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2), show_default=True)
@click.option(
    "--cell", "only", multiple=True, metavar="NAME", help="Only found, greedy, ...; else all."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the JSON files.")
@click.option("--seconds", default=0.0, help="Begin no cell after so long; 0: no limit.")
@click.option("--stored", is_flag=True, help="Measure nothing; a table of what the folder holds.")
def main(
    model: str,
    widths: tuple[int, ...],
    seeds: tuple[int, ...],
    only: tuple[str, ...],
    out: Path | None,
    seconds: float,
    stored: bool,
) -> None:
    """Measure what the output folder does not hold yet, and print a table of all of it."""
    folder = out or cells.ROOT / "benchmarks" / "results" / cells.machine_name() / "bits"
    trials = [Trial(model, bits, seed, folder) for seed in seeds for bits in widths]
    wanted = _planned(trials, only, seconds)
    if stored:
        wanted = (cell for cell in wanted if (folder / f"{cell[0]}.json").is_file())
    print(table(cells.measure(wanted, folder)))


def _planned(
    trials: Sequence["Trial"], only: tuple[str, ...], seconds: float
) -> Iterator[cells.Cell]:
    started = time.monotonic()
    for trial in trials:
        for name, run in trial.cells():
            if seconds and time.monotonic() - started > seconds:
                return
            if only and name.removesuffix("-allocation") not in ("allocations", *only):
                continue  # which all others are of
            yield f"{trial.label}-{name}", run


@dataclass
class Trial:
    """One model, width and seed. folder: Of the cells."""

    model: str
    bits: int
    seed: int
    folder: Path

    @property
    def label(self) -> str:
        """What the names of its cells begin with."""
        return f"bits-{self.model}-w{self.bits}a{self.bits}-seed{self.seed}"

    def cells(self) -> Iterator[cells.Cell]:
        """The allocations, what they are worth, and the models of two of them."""
        yield "allocations", self.allocate
        for name in ("found", "uniform", "greedy"):
            yield name, lambda name=name: self.judge(name)
        yield "random", self.judge_random
        for name in ("found", "uniform"):
            yield f"{name}-rounded", lambda name=name: self.judge_rounded(name)
        yield "penalty", lambda: self.judge("penalty")
        yield f"{SENSITIVITY}-allocation", self.measure_sensitivities
        yield SENSITIVITY, lambda: self.judge(SENSITIVITY)
        yield f"{HEADS}-allocation", self.find_of_heads
        yield HEADS, lambda: self.judge(HEADS)
        for name, penalty in TRAINED.items():
            yield f"{name}-allocation", lambda name=name, penalty=penalty: self.train(name, penalty)
            yield name, lambda name=name: self.judge(name)

    def allocate(self) -> dict[str, Any]:
        """Allocations of the size and BitOps of the uniform one, the preset's: eight bits at both ends and in the
        attention products.
        """
        space, budgets = self._begun
        uniform = space.usual(self.bits)
        start = time.process_time()
        searched = self._searcher.search(budgets).bits
        seconds = time.process_time() - start
        losses = self._searcher.losses
        found = {
            "uniform": uniform,
            "found": searched,
            "greedy": descend_greedily(losses, budgets),
            "penalty": fit(
                descend(losses, uniform.double(), budgets, Settings(), penalized(budgets, 10.0)),
                budgets,
            ),
        }
        generator = torch.Generator().manual_seed(self.seed)
        for i in range(RANDOM):
            found[f"random{i}"] = draw_random(len(uniform), budgets, generator)
        return {
            **self._known,
            "leaves": SEARCHED,
            "processor_seconds": round(seconds, 1),
            "budgets": self._limits,
            "choices": [f"{choice.layer} {choice.kind}" for choice in space.choices],
            "allocations": {
                name: {
                    **_costs(bits, budgets),
                    "sum_of_losses": float(loss_of(losses, bits).sum()),
                }
                for name, bits in found.items()
            },
            "losses": _shortened(losses),
        }

    def measure_sensitivities(self) -> dict[str, Any]:
        """The greedy allocation by the KL that each choice causes alone in a model of eight bits, on the images that
        the search has.
        """
        space, budgets = self._begun
        start = time.process_time()
        losses = measure_sensitivities(self._searcher.measure, len(space.choices))
        bits = descend_greedily(losses, budgets)
        return {
            **self._known,
            "leaves": SEARCHED,
            "processor_seconds": round(time.process_time() - start, 1),
            "budgets": self._limits,
            "allocations": {SENSITIVITY: _costs(bits, budgets)},
            "losses": _shortened(losses),
        }

    def find_of_heads(self) -> dict[str, Any]:
        """What is found where weights of heads are choices of their own."""
        _, budgets = self._begun_by_heads
        start = time.process_time()
        found = self._searcher_by_heads.search(budgets)
        return {
            **self._known,
            "leaves": SEARCHED,
            "processor_seconds": round(time.process_time() - start, 1),
            "budgets": self._limits,
            "allocations": {HEADS: _costs(found.bits, budgets)},
            "leaves_kl": found.divergence,
        }

    def train(self, name: str, penalty: float | None) -> dict[str, Any]:
        """The allocation that Q-ViT trains within the same costs."""
        space, budgets = self._begun_by_heads if _is_of_heads(name) else self._begun
        start = time.process_time()
        vit, seed = float_vit(self.model), space.recipe.seed
        sample = draw_sample(vit.config, space.recipe, source(self.model).pretrained_cfg)
        training = Training(penalty=penalty)
        wanted = train_bits(vit, space, sample, budgets, training, seed=seed)
        bits = fit(wanted, budgets)
        return {
            **self._known,
            "training": asdict(training),
            "leaves": len(sample.images),
            "processor_seconds": round(time.process_time() - start, 1),
            "budgets": self._limits,
            "trained_bits": [round(width, 2) for width in wanted.tolist()],
            "allocations": {name: _costs(bits, budgets)},
        }

    def judge(self, name: str, images: int | None = None) -> dict[str, Any]:
        """What development images say of an allocation."""
        bits = self._bits(name)
        searcher = self._searcher_by_heads if _is_of_heads(name) else self._searcher
        known = {**self._known, "allocation": name}
        return known | self._compare(lambda some: searcher.answer(some, bits), images)

    def judge_random(self) -> dict[str, Any]:
        """The same of the random allocation that is best on fewer images."""
        ranks = {f"random{i}": self.judge(f"random{i}", RANKED)["kl"] for i in range(RANDOM)}
        best = min(ranks, key=lambda name: ranks[name])
        return {**self.judge(best), "ranked_on": RANKED, "ranks": ranks}

    def judge_rounded(self, name: str) -> dict[str, Any]:
        """The same of the model that `qvit quantize` makes: weights are rounded for leaves."""
        recipe = self._begun[0].recipe_of(self._bits(name))
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "model"
            start = time.process_time()
            written = pipeline.quantize(source(self.model), recipe, out, progress=False)
            seconds = time.process_time() - start
            model = QuantViT.from_pretrained(out)
            model.warmup()
            known = {
                **self._known,
                "allocation": f"{name}-rounded",
                "bytes": written["bytes"],
                "processor_seconds": round(seconds, 1),
            }
            return known | self._compare(model)

    @cached_property
    def _begun(self) -> tuple[Space, list[Budget]]:
        return self._begin(heads=False)

    @cached_property
    def _begun_by_heads(self) -> tuple[Space, list[Budget]]:
        return self._begin(heads=True)

    def _begin(self, *, heads: bool) -> tuple[Space, list[Budget]]:
        """What `qvit quantize --bits auto`, or heads, begins with under the costs of the uniform preset."""
        config = float_vit(self.model).config
        limits = limits_of_uniform(config, self.bits, self.bits)
        return begin(config, starts_of(self.seed, limits), limits, heads=heads)

    @cached_property
    def _searcher(self) -> Searcher:
        return make_searcher(source(self.model), self._begun[0])

    @cached_property
    def _searcher_by_heads(self) -> Searcher:
        return make_searcher(source(self.model), self._begun_by_heads[0])

    @property
    def _known(self) -> dict[str, Any]:
        return {"model": self.model, "scheme": f"W{self.bits}A{self.bits}", "seed": self.seed}

    @property
    def _limits(self) -> dict[str, float]:
        return {budget.table.name: budget.limit for budget in self._begun[1]}

    def _bits(self, name: str) -> Tensor:
        cell = f"{name}-allocation" if name in _FOUND_ALONE else "allocations"
        path = self.folder / f"{self.label}-{cell}.json"
        known = json.loads(path.read_text(encoding="utf-8"))["allocations"]
        return torch.tensor(known[name]["bits"])

    def _compare(
        self, model: Callable[[Tensor], Tensor], images: int | None = None
    ) -> dict[str, Any]:
        """KL in nats, of every image, too, agreement and top-1."""
        images = images or IMAGES[self.model]
        theirs = expected(self.model, images, BOTH)
        found = predict(model, self.model, images, BOTH)
        compared = evaluation.compare(found, theirs)
        each = evaluation.divergences(theirs.logits, found.logits)
        return {
            "images": compared.images,
            "images_from": "imagenet/train" if self.model == VIT_TINY else IMAGES_FROM[self.model],
            "kl": compared.kl,
            "agreement": compared.agreement,
            "top1": compared.top1,
            "float_top1": compared.float_top1,
            "kl_each": [round(float(kl), 5) for kl in each],
            "right_each": (found.logits.argmax(1) == found.labels).int().tolist(),
        }


def _is_of_heads(name: str) -> bool:
    """Whether an allocation has bits for every head."""
    return name.endswith(HEADS)


def _costs(bits: Tensor, budgets: Sequence[Budget]) -> dict[str, Any]:
    costs = {budget.table.name: budget.table.whole(bits) for budget in budgets}
    return {"bits": bits.tolist(), **costs}


def _shortened(losses: Tensor) -> list[list[float]]:
    """To four digits, row by row, as files have them."""
    return [[float(f"{loss:.4g}") for loss in row] for row in losses.tolist()]


if __name__ == "__main__":
    main()
