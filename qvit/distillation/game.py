"""The game of PSAQ-ViT V2 (Li et al., TNNLS 2023, arXiv 2209.05687): images and student evolve in turn.

Neither is made once and for all. Images move to where the student is wrong, within what images look like; the student
learns them; and so on for many rounds, without labels. No code and no formulas were published: this is our
reconstruction, by mean absolute difference of logits (Discrepancy) and patch-similarity entropy as the prior; a CNN
has BatchNorm's statistics in its place.

One process plays; batches of a game are small, and each turn needs what the turn before it left. There are no images
that are kept out and no early stop: no image stays what it was, and the last round counts.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from qvit.distillation.adversary import Adversary
from qvit.distillation.discrepancy import logit_discrepancy
from qvit.distillation.progress import LOG, RunLog, load_state, save_state
from qvit.distillation.trainer import Trainer
from qvit.models.convolutional import ResNetTeacher
from qvit.models.networks import Network
from qvit.models.resnet import ResNet
from qvit.models.student import Student, Teacher
from qvit.models.watching import FloatTeacher
from qvit.recipe import Distillation
from qvit.recipe.game import Game
from qvit.recipe.synthesis import Synthesis
from qvit.synthesis.bns import StatisticsMatching
from qvit.synthesis.loop import Descent, optimise
from qvit.synthesis.noise import draw_noise
from qvit.synthesis.objective import Batch, Objective
from qvit.synthesis.privacy import no_images_read
from qvit.synthesis.psaq import PatchSimilarity
from qvit.synthesis.seeds import generator_for
from qvit.synthesis.teacher import hash_state

_STAGE = "game"
_SAVE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Rules:
    """What a game is played by: the turns, what images are led to, and how the student learns."""

    game: Game
    images: Synthesis
    student: Distillation


def play(
    network: Network,
    student: Student,
    rules: Rules,
    *,
    seed: int,
    folder: Path | None = None,
    progress: bool = True,
    save_seconds: float = _SAVE_SECONDS,
) -> dict[str, Any]:
    """Train a student in place, together with the images that it learns from.

    With a folder, a game that was interrupted is continued by the same call and ends in the same bits, at the same
    number of threads.

    Args:
        network: The float teacher, on the student's device; its parameters are left alone.
        student: Calibrated here, on the first images.
        rules: See Rules; `rules.images.batch` images take part.
        seed: Of everything random.
        folder: Where state and log are kept; None for nowhere.
        progress: Show a bar on stderr, if that is a terminal.
        save_seconds: Between two states.

    Returns:
        Counts (`rounds`, `images` made, `sample_steps`, `student_steps`, `skipped`, `capped`), `seconds` of this call,
        and `trace`, one entry a round: `raised`, the discrepancy of all images when they have moved, `lowered`, when
        the student has learned them, the `factor`, the last terms of the images as `images_...`, and what the last step
        of the student found as `student_...`: its loss and terms, and the share of integers that it `changed`; see
        Trainer.step. The log has the same lines.

    Raises:
        UsageError: The folder holds another game.
        InputError: The folder's files are damaged.
        NotFiniteError: The images' loss is not finite.
        QvitError: The student's loss is not finite for too long.
    """
    start = time.perf_counter()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    # The folder's state is read before the guard, which closes native readers.
    play_on = _Play(network, student, rules, seed, folder)
    try:
        with no_images_read(*([] if folder is None else [folder])):
            play_on.begin()
            _rounds(play_on, progress, save_seconds)
    finally:
        play_on.log.close()
    return {**play_on.result(), "seconds": round(time.perf_counter() - start, 2)}


def _rounds(play_on: "_Play", progress: bool, save_seconds: float) -> None:
    game, saved = play_on.rules.game, time.monotonic()
    with tqdm(
        total=game.rounds, initial=play_on.round, unit="round", leave=False, disable=None if progress else True
    ) as bar:  # fmt: skip
        while play_on.round < game.rounds:
            found = play_on.turn()
            if play_on.round == game.rounds or time.monotonic() - saved >= save_seconds:
                play_on.save()
                saved = time.monotonic()
            bar.set_postfix({n: f"{found[n]:.3g}" for n in ("raised", "lowered")}, refresh=False)
            bar.update()


class _Play:
    """One game: where it stands is `round`, the images, the student, and the random numbers."""

    adversary: Adversary
    descent: Descent

    def __init__(
        self, network: Network, student: Student, rules: Rules, seed: int, folder: Path | None
    ) -> None:
        game = rules.game
        self.network, self.student, self.rules, self.folder = network, student, rules, folder
        self.teacher: Teacher = teacher_of(network)
        self.seed, self.round, self.made = seed, 0, rules.images.batch
        self.device = next(network.parameters()).device
        self.moving = replace(
            rules.images, iterations=game.rounds * game.sample_steps, rounds=1, warmup=0.0
        )
        self.trainer = Trainer(
            self.teacher, student.eval(), rules.student, game.rounds * game.student_steps
        )
        self.random = generator_for(seed, _STAGE, 0)
        self.trace: list[dict[str, float]] = []
        self.log = RunLog(None)
        self._digests = [hash_state(network), hash_state(student)]
        self._state = None
        if folder is not None:
            self._state = load_state(folder, self._describe(), str(self.device))
            self.log = RunLog(folder / LOG)

    def begin(self) -> None:
        """Make the first images and calibrate the student on them, or go on where the state was taken."""
        if self._state is not None:
            self._load(self._state)
            return
        self.log.cut(0)
        images = self._start(self.rules.images.batch, 0)
        self.adversary, self.descent = self._sides(images)
        self.student.calibrate(images)

    def turn(self) -> dict[str, float]:
        """One round: the images move, then the student."""
        game = self.rules.game
        if game.refresh_every and self.round and self.round % game.refresh_every == 0:
            self._refresh()
        terms: dict[str, Tensor] = {}
        for step in range(game.sample_steps):
            number = self.round * game.sample_steps + step
            terms = self.descent.step(number, self.rules.images.lr)
        factor, raised = self.adversary.factor, self._discrepancy()
        learned: dict[str, float] = {}
        for step in range(game.student_steps):
            learned = self.trainer.step(self._some(), measure=step == game.student_steps - 1)
        found = {
            "round": self.round,
            "raised": raised,
            "lowered": self._discrepancy(),
            "factor": factor,
            **{f"images_{name}": float(value) for name, value in terms.items()},
            **{f"student_{name}": value for name, value in learned.items()},
        }
        found = {name: float(f"{value:.6g}") for name, value in found.items()}
        self.trace.append(found)
        self.log.write(found)
        self.round += 1
        return found

    def result(self) -> dict[str, Any]:
        """What `play` returns, without the seconds."""
        game = self.rules.game
        return {
            "rounds": self.round,
            "images": self.made,
            "sample_steps": self.round * game.sample_steps,
            "student_steps": self.trainer.done,
            "skipped": self.trainer.skipped,
            "capped": self.trainer.capped,
            "trace": self.trace,
        }

    def _sides(self, images: Tensor) -> tuple[Adversary, Descent]:
        batch = Batch(len(images), self.network.config, self.moving, self.random)
        adversary = Adversary(
            prior_of(self.network)(batch, self.device), self.student, self.rules.game
        )
        return adversary, Descent(self.network, adversary, images.to(self.device), self.moving)

    def _start(self, count: int, number: int) -> Tensor:
        """New images, from noise by the prior alone; `number`: how often there were new ones."""
        settings = self.rules.images
        batch = Batch(
            count, self.network.config, settings, generator_for(self.seed, _STAGE, 1 + number)
        )
        noise = draw_noise(batch).to(self.device)
        prior = prior_of(self.network)(batch, self.device)
        return optimise(
            self.network, prior, noise, settings, every=settings.iterations, sample=lambda *_: None
        )

    def _refresh(self) -> None:
        """Replace the oldest images. They begin where the prior leads, not as noise: noise teaches nothing."""
        count = len(self.descent.pixels)
        some = round(self.rules.game.refresh * count)
        if not some:
            return
        number = self.round // self.rules.game.refresh_every
        positions = torch.arange((number - 1) * some, number * some) % count
        self.descent.restart(positions.to(self.device), self._start(some, number))
        self.made += some

    def _some(self) -> Tensor:
        """A batch of the student's among the images as they are."""
        pixels = self.descent.pixels.detach()
        order = torch.randperm(len(pixels), generator=self.random)
        return pixels[order[: self.rules.student.batch].to(self.device)]

    @torch.no_grad()
    def _discrepancy(self) -> float:
        """D of all images as they are."""
        pixels = self.descent.pixels.detach()
        return float(logit_discrepancy(self.teacher(pixels).logits, self.student(pixels).logits))

    def save(self) -> None:
        """Write the state, if there is a folder."""
        if self.folder is None:
            return
        state = {
            "run": self._describe(),
            "round": self.round,
            "made": self.made,
            "trace": self.trace,
            "random": self.random.get_state(),
            "images": self.descent.state_dict(),
            "discrepancy": [self.adversary.first, self.adversary.mean],
            "trainer": self.trainer.state_dict(),
            "log": self.log.length,
        }
        save_state(self.folder, state)

    def _load(self, state: dict[str, Any]) -> None:
        self.round, self.made, self.trace = state["round"], state["made"], state["trace"]
        self.adversary, self.descent = self._sides(state["images"]["pixels"])
        self.descent.load_state_dict(state["images"])
        self.adversary.first, self.adversary.mean = state["discrepancy"]
        self.trainer.load_state_dict(state["trainer"])
        self.random.set_state(state["random"].cpu())
        self.log.cut(state["log"])

    def _describe(self) -> dict[str, Any]:
        """Everything that decides the bits."""
        return {
            **{name: asdict(getattr(self.rules, name)) for name in ("game", "images", "student")},
            "seed": self.seed,
            "networks": self._digests,
            "threads": torch.get_num_threads(),
            "device": self.device.type,
            "torch": str(torch.__version__),
        }


def teacher_of(network: Network) -> Teacher:
    """A float network as what losses compare a student with."""
    return ResNetTeacher(network) if isinstance(network, ResNet) else FloatTeacher(network)


def prior_of(network: Network) -> Callable[[Batch, torch.device], Objective]:
    """What makes images look like data to this kind of network, without classes."""
    return StatisticsMatching if isinstance(network, ResNet) else PatchSimilarity
