"""The one optimisation loop: pixels in, better pixels out, for every method."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qvit.models.vit import ViT
from qvit.recipe import Synthesis
from qvit.synthesis.augmentation import Placement
from qvit.synthesis.noise import pixel_bounds
from qvit.synthesis.objective import Objective, Outcome, View
from qvit.synthesis.recording import Recording
from qvit.synthesis.sparse import Patches

# iteration, the loss and its terms before they are weighted
Sample = Callable[[int, Mapping[str, float]], None]


class NotFiniteError(ArithmeticError):
    """The loss of a batch became NaN or infinite; `iteration` says when."""

    def __init__(self, iteration: int) -> None:
        super().__init__(f"the loss is not finite at iteration {iteration}")
        self.iteration = iteration


def optimise(
    vit: ViT,
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
        vit: The float teacher, in eval mode; its parameters are left alone.
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
    vit.requires_grad_(False)  # only pixels move: a third of the backward pass is saved
    pixels = start.clone().requires_grad_()
    low, high = pixel_bounds(vit.config, start.device)
    betas = settings.beta1, settings.beta2
    optimizer = torch.optim.AdamW(
        [pixels], lr=settings.lr, betas=betas, weight_decay=settings.weight_decay
    )
    patches = Patches(len(start), vit.config, settings, start.device)
    last = settings.iterations - 1
    shown: Mapping[str, float] = {}
    for iteration in range(settings.iterations):
        if iteration in patches.steps:
            _drop(vit, pixels.detach(), patches, settings)
        optimizer.param_groups[0]["lr"] = learning_rate(iteration, settings)
        terms = _terms(vit, objective, pixels, patches, iteration, settings)
        total = torch.stack(
            [getattr(settings, name) * value for name, value in terms.items()]
        ).sum()
        if not bool(total.isfinite()):
            raise NotFiniteError(iteration)
        if iteration % every == 0 or iteration == last:
            shown = {"loss": total.item()} | {name: v.item() for name, v in terms.items()}
            sample(iteration, shown)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        with torch.no_grad():
            pixels.clamp_(low, high)
        if step_done is not None:
            step_done(iteration + 1, pixels.detach(), shown)
    if not bool(pixels.isfinite().all()):
        raise NotFiniteError(last)
    with torch.no_grad():
        found = pixels.detach()
        return found if patches.complete else patches.blank(found, torch.zeros_like(low))


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


def look(vit: ViT, view: View, kept: Tensor | None, precision: str) -> Outcome:
    """Run the teacher on a view and record its attention; `kept`: patches it sees, None for all."""
    run = Recording(vit.config)
    device = view.images.device.type
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
        logits = vit(view.images, run, kept)
    return Outcome(view, logits.float(), run.records, kept)


def _terms(
    vit: ViT,
    objective: Objective,
    pixels: Tensor,
    patches: Patches,
    iteration: int,
    settings: Synthesis,
) -> dict[str, Tensor]:
    views = objective.views(pixels, iteration / settings.iterations)
    outcomes = [look(vit, v, patches.chosen(v.placement), settings.precision) for v in views]
    return objective.terms(pixels, outcomes)


@torch.no_grad()
def _drop(vit: ViT, pixels: Tensor, patches: Patches, settings: Synthesis) -> None:
    """One look at the images as they are, to see which patches are not attended to."""
    unmoved = Placement()
    outcome = look(vit, View(pixels, unmoved), patches.chosen(unmoved), settings.precision)
    patches.drop(outcome.records[-1])
