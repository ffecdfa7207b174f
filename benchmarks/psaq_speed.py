"""PSAQ-ViT's images: ours against the algorithm as published, the same step of the same 32 images, in turns.

ViT-Tiny, float32, both from noise, one step of optimisation after another: views, loss, gradients, Adam, clamp. Peak
memory is that of a process of its own for each, after three steps; loss and gradient are compared on the same view.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.cells import ROOT, Cell
from benchmarks.published_psaq import published_loss
from benchmarks.sources import source
from qvit import timing, zoo
from qvit.models.timm_import import read_model
from qvit.recipe import Synthesis
from qvit.synthesis.loop import look, optimise
from qvit.synthesis.noise import draw_noise, pixel_bounds
from qvit.synthesis.objective import Batch
from qvit.synthesis.psaq import PatchSimilarity

COUNT = 32
ROUNDS = 3


class Contest:
    """One batch, optimised both ways; `loss` of each on the same view."""

    def __init__(self, count: int = COUNT) -> None:
        self.model = zoo.load(source())
        self.vit = read_model(self.model, source().pretrained_cfg)
        self.settings = Synthesis.preset("psaq", images=count, batch=count, iterations=1, rounds=1)
        generator = torch.Generator().manual_seed(0)
        self.batch = Batch(count, self.vit.config, self.settings, generator)
        self.start = draw_noise(self.batch)
        self.objective = PatchSimilarity(self.batch, torch.device("cpu"))
        self.pixels = self.start.clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.pixels], lr=0.2, betas=(0.5, 0.9))

    def our_step(self) -> None:
        """One step of the loop that `qvit synthesize` runs."""
        optimise(
            self.vit, self.objective, self.start, self.settings, every=1, sample=lambda *_: None
        )

    def published_step(self) -> None:
        """One step as published."""
        view = self.objective.views(self.pixels, 0.0)[0].images
        self.optimizer.zero_grad()
        self.model.zero_grad()
        labels, wanted = self.objective.labels, self.objective.smoothness
        published_loss(self.model, view, labels, wanted).backward()
        self.optimizer.step()
        low, high = pixel_bounds(self.vit.config, torch.device("cpu"))
        self.pixels.data.clamp_(low, high)

    def compare(self) -> dict[str, float]:
        """Both losses of one view, and how far apart their gradients are, relative to the largest."""
        pixels = self.start.clone().requires_grad_()
        view = self.objective.views(pixels, 0.0)[0]
        outcome = look(self.vit.requires_grad_(False), view, None, "float32")
        terms = self.objective.terms(pixels, [outcome])
        ours = torch.stack([getattr(self.settings, n) * v for n, v in terms.items()]).sum()
        (gradient,) = torch.autograd.grad(ours, pixels)
        theirs = published_loss(
            self.model, view.images, self.objective.labels, self.objective.smoothness
        )
        (expected,) = torch.autograd.grad(theirs, pixels)
        return {
            "our_loss": ours.item(),
            "published_loss": theirs.item(),
            "largest_gradient": expected.abs().max().item(),
            "gradient_error": ((gradient - expected).abs().max() / expected.abs().max()).item(),
        }


def cells() -> Iterator[Cell]:
    """One."""
    yield "psaq-speed-vit_t", _measure


def _measure() -> dict[str, Any]:
    contest = Contest()
    equality = contest.compare()
    steps: dict[str, Callable[[], object]] = {
        "ours": contest.our_step,
        "published": contest.published_step,
    }
    times = timing.measure(steps, rounds=ROUNDS, warmup=1)
    memory = {name: _peak(name) for name in steps}
    return {
        "images": COUNT,
        "rounds": ROUNDS,
        **equality,
        "seconds": {name: found.median / 1000 for name, found in times.items()},
        "speedup": times["ours"].speedup_over(times["published"]),
        "peak_bytes": memory,
        "peak_ratio": memory["ours"] / memory["published"],
    }


def _peak(which: str) -> int:
    """Bytes of resident memory that a process of its own needs at most for three steps."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), which],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, both ways of one cell."""
    (cell,) = found
    lines = [
        "| 32 images, ViT-Tiny, float32 | seconds a step | peak memory | loss |",
        "| --- | --- | --- | --- |",
    ]
    for name, loss in (("published", cell["published_loss"]), ("ours", cell["our_loss"])):
        lines.append(
            f"| {name} | {cell['seconds'][name]:.2f} | {cell['peak_bytes'][name] / 2**30:.2f} GiB | {loss:.5f} |"
        )
    return "\n".join([*lines, "", f"{cell['speedup']:.1f} times as many steps a second"])


def _alone(which: str) -> None:
    contest = Contest()
    step = contest.our_step if which == "ours" else contest.published_step
    for _ in range(3):
        step()
    # not ru_maxrss: that of a process also counts what the one that started it had until exec
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    print(1024 * int(status["VmHWM"].split()[0]))


if __name__ == "__main__":
    _alone(sys.argv[1])
