"""synthesize(): from a float model and settings to a folder of images, batch by batch, on as many machines as help."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from qvit.errors import QvitError, UsageError
from qvit.models.student import Student
from qvit.recipe import Synthesis
from qvit.synthesis.acq import draw_images
from qvit.synthesis.bns import StatisticsMatching
from qvit.synthesis.distribution import Place, joined, processes_here
from qvit.synthesis.folder import UserImages
from qvit.synthesis.generator import ImageGenerator
from qvit.synthesis.leaves import draw_leaves
from qvit.synthesis.loop import NotFiniteError, optimise
from qvit.synthesis.maskaq import MaskedAlignment
from qvit.synthesis.measures import measure, summarise
from qvit.synthesis.mimiq import HeadSimilarity
from qvit.synthesis.noise import draw_noise
from qvit.synthesis.objective import Batch, Objective
from qvit.synthesis.prediction import check_memory, predict
from qvit.synthesis.priors import draw_labels
from qvit.synthesis.privacy import no_images_read
from qvit.synthesis.psaq import PatchSimilarity
from qvit.synthesis.sardfq import SemanticRegions
from qvit.synthesis.seeds import SYNTHESIS, generator_for
from qvit.synthesis.shards import RunFolder
from qvit.synthesis.teacher import Teacher, describe, load_teacher
from qvit.synthesis.training import trained_generator
from qvit.zoo import Source

logger = logging.getLogger("qvit")

_NOTE_SECONDS = 10.0  # between two looks that others can take at the log of a running batch
_SAMPLES = 100  # lines of losses in a batch's log
_PROFILES = ("head_distances", "patch_entropies")  # measures by block
_LOOKS = 10  # measurements on the way; each takes about as long as an iteration
_OBJECTIVES: Mapping[str, Callable[[Batch, torch.device], Objective]] = {
    "psaq": PatchSimilarity,
    "mimiq": HeadSimilarity,
    "sardfq": SemanticRegions,
    "bns": StatisticsMatching,
}


def synthesize(
    source: Source,
    settings: Synthesis,
    out: Path,
    *,
    seed: int,
    resume: str = "auto",
    shard: tuple[int, int] | None = None,
    device: str = "cpu",
    progress: bool = True,
    student: Student | None = None,
) -> dict[str, Any]:
    """Make images from a float model's weights alone, or prepare the user's own, and write them as a folder.

    A batch is a unit of work with its own seed: its bytes are the same for any number of processes, in any order,
    and after any interruption, at a given number of threads. An interrupted run is continued by the same call.

    Args:
        source: The float model: a plain ViT, or a ResNet for the methods that need no attention.
        settings: Method, counts and constants.
        out: The folder; what it holds of the same run is kept, and another run's is refused.
        seed: Of everything random.
        resume: "auto", or "never" to refuse a folder that has anything in it.
        shard: (i, N): make the i-th of N shares, from 0, without torchrun.
        device: "cpu" or "cuda".
        progress: Show bars on stderr, if that is a terminal.
        student: The low-bit network that maskaq compares its teacher with, on the same device; it is not changed.

    Returns:
        What --json prints: counts, seconds, the measures of the batches that were made, and whether the folder is
        `complete`.

    Raises:
        UsageError: The method cannot work with the model, the batch does not fit into memory, the folder is
            another run's, or the share impossible.
        InputError: Weights, the user's images or a shard do not fit or cannot be read.
        QvitError: A batch has no finite loss under any of its seeds.
    """
    if resume not in ("auto", "never"):
        raise UsageError(f"--resume {resume}: expected auto or never")
    with joined(device, shard) as place:
        teacher = load_teacher(source, settings, seed, place.device, student)
        needs = predict(teacher.network.config, settings, shares=place.count)
        check_memory(needs, settings, device=place.device, together=processes_here())
        folder = RunFolder(
            out.resolve(), describe(source, teacher, settings, seed), teacher.batches
        )
        folder.check(resume)
        place.meet()  # before any of the processes makes the folder that "never" would refuse the others
        folder.open()
        mine = place.mine(range(teacher.batches))
        missing = folder.missing(mine)
        start = time.perf_counter()
        # The guard is after all that may read: weights, the user's images, what lies in the folder.
        if settings.generated and missing and (place.rank == 0 or shard is not None):
            with _guard(settings, folder.path):
                _train(teacher, settings, seed, folder, progress)
        if settings.generated:
            place.meet()  # the first process trains the generator, the others read it
        with _guard(settings, folder.path):
            if settings.generated and missing:
                teacher = replace(teacher, maker=_train(teacher, settings, seed, folder, False))
            made = _make(teacher, settings, seed, folder, missing, place, progress)
        complete = folder.finish()
    # Outside, all processes have finished their shares: the last shard may have come after the look above.
    complete = complete or folder.finish()
    seconds = time.perf_counter() - start
    return {
        "path": str(folder.path),
        "model": source.timm_name,
        "method": settings.method,
        "images": settings.images,
        "batches": teacher.batches,
        "made": len(made),
        "found": len(mine) - len(missing),
        "retried": sum(m.attempt for m in made),
        "complete": complete,
        "images_read": settings.images_read,
        "seconds": round(seconds, 2),
        "seconds_per_image": round(seconds / max(1, sum(m.images for m in made)), 3),
        "measures": _average(made),
        "fingerprint": folder.described["fingerprint"],
    }


@dataclass(frozen=True, slots=True)
class Made:
    """One finished batch: its number of images, the attempt that succeeded, and its measures."""

    images: int
    attempt: int
    before: Mapping[str, float]
    after: Mapping[str, float]


def _guard(settings: Synthesis, folder: Path) -> AbstractContextManager[None]:
    return no_images_read(folder) if settings.data_free else nullcontext()


def _train(
    teacher: Teacher, settings: Synthesis, seed: int, folder: RunFolder, progress: bool
) -> ImageGenerator:
    """The generator that the images of a run are drawn from; at once, where it is trained already."""
    with tqdm(
        total=settings.iterations, unit="step", desc="generator", disable=None if progress else True, leave=False
    ) as bar:  # fmt: skip

        def step_done(done: int, losses: Mapping[str, float]) -> None:
            bar.set_postfix({name: f"{value:.3g}" for name, value in losses.items()}, refresh=False)
            bar.update(done - bar.n)

        return trained_generator(
            teacher.network, settings, seed, folder.path, folder.described["fingerprint"], step_done
        )


def _make(
    teacher: Teacher,
    settings: Synthesis,
    seed: int,
    folder: RunFolder,
    missing: list[int],
    place: Place,
    progress: bool,
) -> list[Made]:
    steps = 1 if settings.generated else max(1, settings.iterations)
    silent = None if progress and place.rank == 0 else True
    made = []
    with tqdm(total=len(missing) * steps, unit="step", disable=silent, leave=False) as bar:
        for batch in missing:
            bar.set_description(f"batch {batch + 1}/{folder.batches}")
            start = bar.n
            made.append(_make_batch(teacher, settings, seed, folder, batch, bar))
            bar.update(start + steps - bar.n)
    return made


def _make_batch(
    teacher: Teacher, settings: Synthesis, seed: int, folder: RunFolder, batch: int, bar: tqdm
) -> Made:
    """One batch under one seed after another, until its loss is finite."""
    lines: list[dict[str, Any]] = []
    for attempt in range(settings.retries + 1):
        try:
            work = _Work(teacher, settings, seed, batch, attempt, lines, bar, folder)
            return work.finish()
        except NotFiniteError as error:
            lines.append(
                {
                    "batch": batch,
                    "event": "retried",
                    "attempt": attempt,
                    "iteration": error.iteration,
                }
            )
            logger.warning("batch %d: %s; trying another seed", batch, error)
    raise QvitError(
        f"batch {batch} has no finite loss under any of {settings.retries + 1} seeds; lower the learning rate with "
        "--set synthesis.lr=..., or use --set synthesis.precision=float32"
    )


class _Work:
    """One attempt at one batch."""

    def __init__(
        self,
        teacher: Teacher,
        settings: Synthesis,
        seed: int,
        batch: int,
        attempt: int,
        lines: list[dict[str, Any]],
        bar: tqdm,
        folder: RunFolder,
    ) -> None:
        self.folder, self.noted = folder, time.monotonic()
        self.teacher, self.settings, self.number, self.attempt = teacher, settings, batch, attempt
        self.lines, self.bar = lines, bar
        first = batch * settings.batch
        self.positions = range(first, min(first + settings.batch, settings.images))
        self.started = time.perf_counter()
        generator = generator_for(seed, SYNTHESIS, batch, attempt)
        self.batch = Batch(len(self.positions), teacher.network.config, settings, generator)

    def finish(self) -> Made:
        """Make the images and write them."""
        network, device = self.teacher.network, next(self.teacher.network.parameters()).device
        start, labels, objective = self._begin(device)
        moves = objective is not None or self.teacher.maker is not None
        before = summarise(measure(network, start)) if moves else None
        images = start if objective is None else self._optimise(objective, start)
        if self.teacher.maker is not None:
            images, labels = draw_images(
                network, self.teacher.maker, self.settings, len(start), self.batch.generator
            )
        images = images.to(torch.float16).float()  # what is stored is what is measured
        found = measure(network, images)
        after = summarise(found)
        before = after if before is None else before
        self.lines.append(
            {
                "batch": self.number,
                "event": "finished",
                "attempt": self.attempt,
                "images": len(images),
                "seconds": round(time.perf_counter() - self.started, 3),
                "before": before,
                "after": after,
                **{name: _rounded(found[name]) for name in _PROFILES if name in found},
            }
        )
        self.folder.write(self.number, images, labels, self.attempt, self.lines)
        return Made(len(images), self.attempt, before, after)

    def _begin(self, device: torch.device) -> tuple[Tensor, Tensor, Objective | None]:
        if self.teacher.given is not None:
            images, labels = self._read(self.teacher.given)
            return images.to(device), labels, None
        leaves = "leaves" in (self.settings.method, self.settings.start)
        start = (draw_leaves if leaves else draw_noise)(self.batch).to(device)
        if self.settings.generated or not self.settings.optimised:
            return start, draw_labels(self.batch), None
        if self.settings.method == "maskaq":
            objective = MaskedAlignment(self.batch, device, self.teacher.student)
        else:
            objective = _OBJECTIVES[self.settings.method](self.batch, device)
        return start, objective.labels, objective

    def _read(self, given: UserImages) -> tuple[Tensor, Tensor]:
        """The user's images, and leaves, which have no label, in the places behind the last of those."""
        mine = [p for p in self.positions if p < self.settings.images_read]
        parts = [given.read(mine)] if mine else []
        count = len(self.positions) - len(mine)
        if count:
            leaves = draw_leaves(replace(self.batch, count=count))
            parts.append((leaves, torch.full((count,), -1)))
        images, labels = zip(*parts, strict=True)
        return torch.cat(images), torch.cat(labels)

    def _optimise(self, objective: Objective, start: Tensor) -> Tensor:
        def sample(iteration: int, losses: Mapping[str, float]) -> None:
            seconds = round(time.perf_counter() - self.started, 3)
            terms = {name: float(f"{value:.6g}") for name, value in losses.items()}
            self.lines.append(
                {"batch": self.number, "iteration": iteration, "seconds": seconds, **terms}
            )
            if time.monotonic() - self.noted >= _NOTE_SECONDS:
                self.folder.note(self.number, self.lines)
                self.noted = time.monotonic()

        def step_done(done: int, pixels: Tensor, losses: Mapping[str, float]) -> None:
            self.bar.set_postfix(
                {name: f"{value:.3g}" for name, value in losses.items()}, refresh=False
            )
            self.bar.update()
            if done % looks == 0 and done < self.settings.iterations:
                found = summarise(measure(self.teacher.network, pixels))
                self.lines.append(
                    {"batch": self.number, "event": "measured", "iteration": done, **found}
                )

        looks = max(1, self.settings.iterations // _LOOKS)
        every = max(1, self.settings.iterations // _SAMPLES)
        return optimise(
            self.teacher.network,
            objective,
            start,
            self.settings,
            every=every,
            sample=sample,
            step_done=step_done,
        )


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 5) for value in values]


def _average(made: list[Made]) -> dict[str, dict[str, float]] | None:
    """Measures before and after, weighted by images; None where nothing was made."""
    total = sum(m.images for m in made)
    if not total:
        return None
    return {
        when: {
            name: round(sum(m.images * getattr(m, when)[name] for m in made) / total, 4)
            for name in made[0].after
        }
        for when in ("before", "after")
    }
