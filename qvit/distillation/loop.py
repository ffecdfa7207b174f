"""The one training loop: images that somebody made, a step after the other, until the schedule ends.

The student is in eval mode: nothing drops out and no statistics move. The last step counts, not the best. Real images
have no way in: agreement is measured on images of the same kind that are kept out.

    torchrun --nproc-per-node 4 program.py      each process takes its share of every batch; see processes.py

    with joined() as processes:                 # in program.py; `qvit quantize` is the work of one process
        distil(..., processes=processes)
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from qvit.distillation.augmentation import augment
from qvit.distillation.divergence import soft_divergence
from qvit.distillation.pool import Order, Pool
from qvit.distillation.processes import Processes
from qvit.distillation.progress import LOG, RunLog, load_state, save_state
from qvit.distillation.trainer import Trainer
from qvit.errors import UsageError
from qvit.models.student import Student, Teacher
from qvit.recipe import Distillation
from qvit.synthesis.seeds import generator_for
from qvit.synthesis.teacher import hash_state

_SAVE_SECONDS = 60.0
_LINES = 1000  # of steps in a log


@dataclass(frozen=True, slots=True)
class Pixels:
    """Mean and standard deviation of the normalisation, per channel; augmentation works on pixels from 0 to 1."""

    mean: Sequence[float]
    std: Sequence[float]


def distil(
    teacher: Teacher,
    student: Student,
    pool: Pool,
    settings: Distillation,
    *,
    seed: int,
    pixels: Pixels | None = None,
    folder: Path | None = None,
    processes: Processes | None = None,
    progress: bool = True,
    save_seconds: float = _SAVE_SECONDS,
) -> dict[str, Any]:
    """Train a student, in place.

    With a folder, a run that was interrupted is continued by the same call and ends in the same bits, at the same
    number of threads and processes.

    Args:
        teacher: Maps images to a Seen.
        student: Calibrated, on the device of its parameters.
        pool: The images; a share is kept out.
        settings: Losses, optimiser, schedule.
        seed: Of the order, the share kept out, and the augmentation.
        pixels: Needed by settings.augment.
        folder: Where state and log are kept; None for nowhere.
        processes: This one among those that train together.
        progress: Show a bar on stderr, if that is a terminal.
        save_seconds: Between two states.

    Returns:
        Counts (`steps`, `images`, `held_out`, `epochs`, `skipped`, and `capped`, the steps in which gradient inundation
        hit its cap), whether it `stopped_early`, `before` and `after` with `agreement` in percent and `kl` on the
        images kept out (None without any), and `seconds` of this call.

    Raises:
        UsageError: The settings do not fit images or processes, or the folder holds another run, or is not the same for
            all processes.
        InputError: The folder's files are damaged.
        QvitError: The loss is not finite for too long.
    """
    start = time.perf_counter()
    run = _Run(teacher, student, pool, settings, seed, pixels, folder, processes or Processes())
    try:
        run.begin()
        _train(run, progress, save_seconds)
    finally:
        run.log.close()
    run.processes.meet()  # the others may read what the first has written
    return {**run.result(), "seconds": round(time.perf_counter() - start, 2)}


def _train(run: "_Run", progress: bool, save_seconds: float) -> None:
    bar = tqdm(
        total=run.trainer.steps,
        initial=run.trainer.done,
        unit="step",
        leave=False,
        disable=None if progress and run.processes.rank == 0 else True,
    )
    saved = time.monotonic()
    with bar:
        while not run.finished:
            found = run.step()
            bar.set_postfix({"loss": f"{found['loss']:.3g}"}, refresh=False)
            bar.update()
            if run.finished or time.monotonic() - saved >= save_seconds:
                run.save()
                saved = time.monotonic()


class _Run:
    """One run: where it stands is `trainer.done`, `measured` and nothing else."""

    def __init__(
        self,
        teacher: Teacher,
        student: Student,
        pool: Pool,
        settings: Distillation,
        seed: int,
        pixels: Pixels | None,
        folder: Path | None,
        processes: Processes,
    ) -> None:
        if settings.augment and pixels is None:
            raise UsageError(
                "distillation.augment needs the normalisation of the images: give `pixels`"
            )
        train, held_out = pool.split(settings.holdout, seed)
        batch = min(settings.batch, len(train))
        if batch % processes.count:
            raise UsageError(
                f"a batch of {batch} images is not divided by {processes.count} processes; "
                "change distillation.batch or their number"
            )
        self.order = Order(train, batch, seed)
        self.teacher, self.student, self.pool, self.settings = teacher, student, pool, settings
        self.seed, self.pixels, self.folder, self.processes = seed, pixels, folder, processes
        self.held_out = held_out
        self.device = next(student.parameters()).device
        steps = settings.epochs * self.order.steps_per_epoch
        self.trainer = Trainer(teacher, student.eval(), settings, steps, processes)
        self.every = max(1, steps // _LINES)
        self.measured: list[dict[str, float]] = []
        self.log = RunLog(None)
        self._identity: dict[str, Any] = {}

    @property
    def epoch(self) -> int:
        """Finished ones."""
        return self.trainer.done // self.order.steps_per_epoch

    @property
    def stopped(self) -> bool:
        """Whether agreement has not risen for as many epochs as patience lasts."""
        patience = self.settings.patience
        if not patience or len(self.measured) <= patience:
            return False
        best = max(m["agreement"] for m in self.measured[:-patience])
        return max(m["agreement"] for m in self.measured[-patience:]) <= best

    @property
    def finished(self) -> bool:
        """Whether no step follows."""
        return self.trainer.done >= self.trainer.steps or self.stopped

    def begin(self) -> None:
        """Start, or go on where the folder's state was taken."""
        self.processes.align(self.student)
        first = self.processes.rank == 0
        self._identity = self._describe()
        state = None
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            state = load_state(self.folder, self._identity, str(self.device))
            # Nobody writes before everybody has read. Steps of other numbers would be averaged with each other.
            done = 0 if state is None else state["trainer"]["done"]
            if not self.processes.alike(done, self.device):
                raise UsageError(
                    f"{self.folder} holds a state for some processes and not for others; put it where all of them can "
                    "read it"
                )
            if first:
                self.log = RunLog(self.folder / LOG)
        if state is None:
            self.log.cut(0)
            self._measure()
            return
        self.trainer.load_state_dict(state["trainer"])
        self.measured = state["measured"]
        self.log.cut(state["log"])

    def step(self) -> dict[str, float]:
        """One step; at the end of an epoch, a look at the images kept out."""
        number = self.trainer.done
        positions = self.order.at(number)[self.processes.rank :: self.processes.count]
        images, labels = self.pool.take(positions)
        images = images.to(self.device)
        if self.settings.augment and self.pixels is not None:
            generator = generator_for(self.seed, "augmentation", number)
            images = augment(images, self.pixels.mean, self.pixels.std, generator)
        labels = None if labels is None else labels.to(self.device)
        shown = number % self.every == 0 or number == self.trainer.steps - 1
        found = self.trainer.step(images, labels, measure=shown)
        if shown or "skipped" in found:
            self.log.write({"step": number, **{k: float(f"{v:.6g}") for k, v in found.items()}})
        if self.trainer.done % self.order.steps_per_epoch == 0:
            self._measure()
        return found

    def save(self) -> None:
        """Write the state, if there is a folder."""
        if self.folder is not None and self.processes.rank == 0:
            state = {"run": self._identity, "trainer": self.trainer.state_dict()}
            save_state(self.folder, {**state, "measured": self.measured, "log": self.log.length})

    def result(self) -> dict[str, Any]:
        """What `distil` returns, without the seconds."""
        return {
            "steps": self.trainer.done,
            "epochs": self.epoch,
            "images": len(self.order.positions),
            "held_out": len(self.held_out),
            "skipped": self.trainer.skipped,
            "capped": self.trainer.capped,
            "stopped_early": self.trainer.done < self.trainer.steps,
            "before": self.measured[0] if self.measured else None,
            "after": self.measured[-1] if self.measured else None,
        }

    def _measure(self) -> None:
        if not len(self.held_out):
            return
        found = agreement(self.teacher, self.student, self.pool, self.held_out, self.settings.batch)
        self.measured.append(found)
        self.log.write({"epoch": self.epoch, **found})

    def _describe(self) -> dict[str, Any]:
        """Everything that decides the bits."""
        return {
            "settings": asdict(self.settings),
            "seed": self.seed,
            "images": self.pool.digest(),
            "student": hash_state(self.student),
            "steps": self.trainer.steps,
            "processes": self.processes.count,
            "threads": torch.get_num_threads(),
            "device": self.device.type,
            "torch": str(torch.__version__),
        }


@torch.no_grad()
def agreement(
    teacher: Teacher, student: Student, pool: Pool, positions: Tensor, batch: int
) -> dict[str, float]:
    """How well a student does what its teacher does.

    Returns:
        `agreement`: percent of images on which both have the same highest logit; `kl`: mean divergence in nats.
    """
    device = next(student.parameters()).device
    same, divergence = 0, 0.0
    for some in positions.split(batch):
        images = pool.take(some)[0].to(device)
        theirs, ours = teacher(images).logits, student(images).logits
        same += int((theirs.argmax(-1) == ours.argmax(-1)).sum())
        divergence += float(soft_divergence(theirs, ours)) * len(some)
    return {
        "agreement": round(100 * same / len(positions), 4),
        "kl": float(f"{divergence / len(positions):.6g}"),
    }
