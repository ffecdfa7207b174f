"""The one optimisation loop: pixels in, better pixels out, for every method."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from qvit.models.networks import Network
from qvit.models.resnet import ResNet
from qvit.models.vit import ViT
from qvit.recipe import Synthesis
from qvit.synthesis.augmentation import Placement
from qvit.synthesis.noise import pixel_bounds
from qvit.synthesis.objective import Objective, Outcome, View
from qvit.synthesis.recording import Recording
from qvit.synthesis.sparse import Patches
from qvit.synthesis.statistics import record_statistics

# iteration, the loss and its terms before they are weighted
Sample = Callable[[int, Mapping[str, float]], None]


class NotFiniteError(ArithmeticError):
    """The loss of a batch became NaN or infinite; `iteration` says when."""

    def __init__(self, iteration: int) -> None:
        super().__init__(f"the loss is not finite at iteration {iteration}")
        self.iteration = iteration


class Descent:
    """Pixels on their way down: one batch with its optimiser and the patches that are left of it.

    Attributes:
        pixels: fp32 [B, C, H, W], normalised, each value one that a pixel can have after the first step.
    """

    def __init__(
        self, network: Network, objective: Objective, start: Tensor, settings: Synthesis
    ) -> None:
        network.requires_grad_(False)  # only pixels move: a third of the backward pass is saved
        self.network, self.objective, self.settings = network, objective, settings
        self.pixels = start.clone().requires_grad_()
        self._low, self._high = pixel_bounds(network.config, start.device)
        betas = settings.beta1, settings.beta2
        self._optimizer = torch.optim.AdamW(
            [self.pixels], lr=settings.lr, betas=betas, weight_decay=settings.weight_decay
        )
        self._patches = None
        if settings.sparse:
            assert isinstance(network, ViT)
            self._patches = Patches(len(start), network.config, settings, start.device)

    def step(self, iteration: int, lr: float) -> dict[str, Tensor]:
        """One step at a learning rate; returns the loss as `loss`, and its terms before they are weighted.

        Raises:
            NotFiniteError: The loss is not.
        """
        if self._patches is not None and iteration in self._patches.steps:
            self._drop(self._patches)
        self._optimizer.param_groups[0]["lr"] = lr
        terms = self._terms(iteration)
        total = torch.stack(
            [getattr(self.settings, name) * value for name, value in terms.items()]
        ).sum()
        if not bool(total.isfinite()):
            raise NotFiniteError(iteration)
        # Of the pixels alone: a student that takes part keeps the gradients that it has.
        (self.pixels.grad,) = torch.autograd.grad(total, [self.pixels])
        self._optimizer.step()
        with torch.no_grad():
            self.pixels.clamp_(self._low, self._high)
        return {"loss": total.detach()} | {name: v.detach() for name, v in terms.items()}

    @torch.no_grad()
    def restart(self, images: Tensor, start: Tensor) -> None:
        """Begin anew with some images: their numbers int64 [n], and where they start, fp32 [n, C, H, W]."""
        self.pixels[images] = start
        for moment in self._optimizer.state[self.pixels].values():
            if moment.shape == self.pixels.shape:
                moment[images] = 0

    def state_dict(self) -> dict[str, Any]:
        """Pixels and the optimiser's moments; dropped patches are not among it."""
        return {"pixels": self.pixels.detach().clone(), "optimiser": self._optimizer.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; everything random is the objective's."""
        self.pixels.copy_(state["pixels"])
        self._optimizer.load_state_dict(state["optimiser"])

    @torch.no_grad()
    def finish(self) -> Tensor:
        """The images as they are, dropped patches in the mean colour. Raises NotFiniteError where a pixel is not."""
        if not bool(self.pixels.isfinite().all()):
            raise NotFiniteError(self.settings.iterations - 1)
        found = self.pixels.detach()
        if self._patches is None or self._patches.complete:
            return found
        return self._patches.blank(found, torch.zeros_like(self._low))

    def _terms(self, iteration: int) -> dict[str, Tensor]:
        views = self.objective.views(self.pixels, iteration / self.settings.iterations)
        kept = [None if self._patches is None else self._patches.chosen(v.placement) for v in views]
        outcomes = [
            look(self.network, view, chosen, self.settings.precision)
            for view, chosen in zip(views, kept, strict=True)
        ]
        return self.objective.terms(self.pixels, outcomes)

    @torch.no_grad()
    def _drop(self, patches: Patches) -> None:
        """One look at the images as they are, to see which patches are not attended to."""
        unmoved = Placement()
        view = View(self.pixels.detach(), unmoved)
        outcome = look(self.network, view, patches.chosen(unmoved), self.settings.precision)
        patches.drop(outcome.records[-1])


def optimise(
    network: Network,
    objective: Objective,
    start: Tensor,
    settings: Synthesis,
    *,
    every: int,
    sample: Sample,
    step_done: Callable[[int, Tensor, Mapping[str, float]], None] | None = None,
) -> Tensor:
    """Optimise the pixels of one batch.

    Args:
        network: The float teacher, in eval mode; its parameters are left alone.
        objective: Of this batch; everything random is drawn from its generator.
        start: fp32 [B, C, H, W], normalised.
        settings: Learning rate, weights, precision, dropped patches.
        every: `sample` is called each so many iterations, and at the last one.
        sample: Receives the iteration, and the loss with its terms.
        step_done: Called after every iteration: how many are done, the pixels as they are, the last sample's losses.

    Returns:
        fp32 [B, C, H, W], each value one that a pixel can have.

    Raises:
        NotFiniteError: The loss or a pixel is no longer finite.
    """
    descent = Descent(network, objective, start, settings)
    last = settings.iterations - 1
    shown: Mapping[str, float] = {}
    for iteration in range(settings.iterations):
        losses = descent.step(iteration, learning_rate(iteration, settings))
        if iteration % every == 0 or iteration == last:
            shown = {name: value.item() for name, value in losses.items()}
            sample(iteration, shown)
        if step_done is not None:
            step_done(iteration + 1, descent.pixels.detach(), shown)
    return descent.finish()


def learning_rate(iteration: int, settings: Synthesis) -> float:
    """lr (i + 1) / w while warming up, then lr_final + (lr - lr_final)(1 + cos(pi (i - w)/(n - w)))/2, each round anew.

    n: iterations of a round (the last round takes what is left over), w: warmup of them.
    """
    length = max(1, settings.iterations // settings.rounds)
    current = min(iteration // length, settings.rounds - 1)
    if current == settings.rounds - 1:
        length = settings.iterations - current * length
    step = iteration - current * (settings.iterations // settings.rounds)
    rising = round(settings.warmup * length)
    if step < rising:
        return settings.lr * (step + 1) / rising
    fallen = 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, length - rising)))
    return settings.lr_final + (settings.lr - settings.lr_final) * fallen


def look(network: Network, view: View, kept: Tensor | None, precision: str) -> Outcome:
    """Run the teacher on a view and record what methods read; `kept`: patches a ViT sees, None for all."""
    device = view.images.device.type
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
        if isinstance(network, ResNet):
            logits, stages, statistics = record_statistics(network, view.images)
            return Outcome(view, logits.float(), (), None, statistics, stages)
        run = Recording(network.config)
        tokens = network.forward_features(view.images, run, kept)
        logits = network.forward_head(tokens, run)
    return Outcome(view, logits.float(), run.records, kept, (), (tokens,))
