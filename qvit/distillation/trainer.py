"""The training step: one teacher, one student, one optimiser, and a step that takes images.

Whoever has images takes steps: loop.py for a folder of them, a game for images that move between the steps.

    trainer = Trainer(teacher, student, settings, steps=1000)      # settings: qvit.recipe.Distillation
    student.calibrate(images)                                      # static ranges, where it has some
    for images, labels in ...:
        found = trainer.step(images, labels)                       # {"loss": ..., "kl": ..., "lr": ...}
    state = trainer.state_dict(); trainer.load_state_dict(state)   # the next step then has the same bits

`teacher` maps images to a Seen, `student` is a Student; see qvit/models/student.py. Nothing random happens in a step.
"""

import logging
import math
from typing import Any

import torch
from torch import Tensor

from qvit.distillation.inundation import Crossing, changed_share, inundate, take_codes
from qvit.distillation.objective import losses
from qvit.distillation.processes import Processes
from qvit.distillation.schedule import crossing_share, learning_rate
from qvit.errors import QvitError, UsageError
from qvit.models.student import IntegerWeight, Student, Teacher
from qvit.quant.tracking import share_batches, track_ranges
from qvit.recipe import Distillation

logger = logging.getLogger("qvit")


class Trainer:
    """Takes steps. `done` counts them, those that were skipped included, of `steps`; `skipped` and `capped` count the
    steps that were skipped, and those in which the step of some weight was at inundation's cap.
    """

    def __init__(
        self,
        teacher: Teacher,
        student: Student,
        settings: Distillation,
        steps: int,
        processes: Processes | None = None,
    ) -> None:
        """Args as in the module's page; `processes`: they share every batch, and take the step that one would."""
        if steps < 1:
            raise UsageError(
                f"a run of {steps} steps: expected at least 1; give more images or epochs"
            )
        self.teacher, self.student, self.settings = teacher, student, settings
        self.steps, self.done = steps, 0
        self.skipped = self._skipped_in_a_row = self.capped = 0
        self.processes = processes or Processes()
        share_batches(student, self.processes)
        self._parameters = [p for p in student.parameters() if p.requires_grad]
        self._weights = list(student.integer_weights())
        self._optimiser = _optimiser(self._parameters, settings)

    def step(
        self, images: Tensor, labels: Tensor | None = None, *, measure: bool = False
    ) -> dict[str, float]:
        """One step of the student.

        Args:
            images: Normalised [B, C, H, W]; with several processes, this one's share.
            labels: int64 [B] or probabilities [B, classes]; only for the cross-entropy.
            measure: Also count the integers that changed. Always done where gradient inundation is on.

        Returns:
            `loss` and its terms before weights, `lr`; `changed`, the share of all integers that changed; with
            inundation `share` (p), `least_changed`, `alpha` (mean factor), `capped` (weights at the cap) and
            `capped_steps` (steps so far with any); `skipped` is there, and nothing was changed, where the loss or a
            gradient was not finite.

        Raises:
            QvitError: More steps in a row were not finite than `settings.skips` allows.
        """
        settings = self.settings
        lr = learning_rate(self.done, self.steps, settings)
        track_ranges(self.student, self.done < settings.track * self.steps)
        found = self._backward(images, labels)
        found["lr"] = lr
        finite = self._finite(found["loss"])
        if finite:
            self._optimiser.param_groups[0]["lr"] = lr
            found |= self._move(measure)
        self._count(finite, found)
        self._optimiser.zero_grad()
        self.done += 1
        return found

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, apart from teacher and settings."""
        return {
            "student": self.student.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "done": self.done,
            "skipped": [self.skipped, self._skipped_in_a_row],
            "capped": self.capped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken. Raises RuntimeError for another student's state."""
        self.student.load_state_dict(state["student"])
        self._optimiser.load_state_dict(state["optimiser"])
        self.done = state["done"]
        self.skipped, self._skipped_in_a_row = state["skipped"]
        self.capped = state.get("capped", 0)  # a run that began before they were counted

    def _backward(self, images: Tensor, labels: Tensor | None) -> dict[str, float]:
        """Losses, and gradients averaged over the processes."""
        narrow = self.settings.precision == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=narrow):
            with torch.no_grad():
                theirs = self.teacher(images)
            ours = self.student(images)
        terms = losses(theirs, ours, labels, self.settings)
        weighted = [getattr(self.settings, name) * value for name, value in terms.items()]
        total = torch.stack(weighted).sum()
        total.backward()
        for parameter in self._parameters:
            if parameter.grad is None:  # another process may have one
                parameter.grad = torch.zeros_like(parameter)
        numbers = torch.stack([total, *terms.values()]).detach().float()
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        self.processes.average([*gradients, numbers])
        return dict(zip(("loss", *terms), numbers.tolist(), strict=True))

    def _finite(self, loss: float) -> bool:
        """Whether this step may be taken; the same in all processes, which have the same averages."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        return math.isfinite(loss) and bool(torch.nn.utils.get_total_norm(gradients).isfinite())

    @torch.no_grad()
    def _move(self, measure: bool) -> dict[str, float]:
        settings = self.settings
        share = crossing_share(self.done, self.steps, settings)
        # Before anything moves: scales may be parameters, and integers change with them.
        codes = take_codes(self._weights) if share or measure else []
        if share:
            steps = self._plain_steps()
            crossings = [
                inundate(
                    weight,
                    old,
                    step,
                    share,
                    cap=settings.inundation_cap,
                    bisections=settings.inundation_bisections,
                )
                for weight, old, step in zip(self._weights, codes, steps, strict=True)
            ]
            found = _summary(crossings, self._weights)
            # Counted, since most steps have no line in a log.
            self.capped += found["capped"] > 0
            return {"share": share, **found, "capped_steps": float(self.capped)}
        self._optimiser.step()
        return {"changed": changed_share(self._weights, codes)} if measure else {}

    def _plain_steps(self) -> list[Tensor]:
        """What the optimiser would add to each integer weight; all other parameters take their step.

        The optimiser steps from zero, so that nothing is rounded to the last bit of a weight; weight decay, which it
        cannot see then, is put in by hand.
        """
        settings, parameters = self.settings, [w.parameter for w in self._weights]
        before = [p.detach().clone() for p in parameters]
        for parameter, old in zip(parameters, before, strict=True):
            if settings.weight_decay and settings.optimiser == "sgd" and parameter.grad is not None:
                parameter.grad.add_(old, alpha=settings.weight_decay)
            parameter.zero_()
        self._optimiser.step()
        steps = [p.detach().clone() for p in parameters]
        for parameter, old, step in zip(parameters, before, steps, strict=True):
            if settings.optimiser == "adam":
                lr = self._optimiser.param_groups[0]["lr"]
                step.add_(old, alpha=-lr * settings.weight_decay)
            parameter.copy_(old)
        return steps

    def _count(self, finite: bool, found: dict[str, float]) -> None:
        if finite:
            self._skipped_in_a_row = 0
            return
        found["skipped"] = 1.0
        self.skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row > self.settings.skips:
            raise QvitError(
                f"{self._skipped_in_a_row} steps in a row had a loss or a gradient that is not finite, the last "
                f"of them step {self.done}; lower the learning rate with --set distillation.lr=..., or use "
                "--set distillation.precision=float32"
            )
        logger.warning("step %d skipped: its loss or a gradient is not finite", self.done)


def _optimiser(
    parameters: list[torch.nn.Parameter], settings: Distillation
) -> torch.optim.Optimizer:
    if settings.optimiser == "adam":
        betas = settings.momentum, 0.999
        return torch.optim.AdamW(
            parameters, lr=settings.lr, betas=betas, weight_decay=settings.weight_decay
        )
    return torch.optim.SGD(
        parameters,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        weight_decay=settings.weight_decay,
    )


def _summary(crossings: list[Crossing], weights: list[IntegerWeight]) -> dict[str, float]:
    sizes = [weight.parameter.numel() for weight in weights]
    total = sum(sizes)
    return {
        "changed": sum(c.share * n for c, n in zip(crossings, sizes, strict=True)) / total,
        "plain_changed": sum(c.plain * n for c, n in zip(crossings, sizes, strict=True)) / total,
        "least_changed": min(c.share for c in crossings),
        "alpha": sum(c.alpha for c in crossings) / len(crossings),
        "capped": float(sum(c.capped for c in crossings)),
    }
