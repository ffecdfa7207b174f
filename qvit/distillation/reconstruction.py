"""Reconstruction: block after block, the weights learn which way to be rounded (AdaRound, BRECQ).

What is learned is Nagel et al.'s rectified sigmoid (AdaRound, ICML 2020, section 3.2), in quant/relaxation.py; the unit
that is compared is a block, as in BRECQ (Li et al., ICLR 2021, section 3.2), whose weighting by Fisher information,
refined for ViTs in FIMA-Q (CVPR 2025), is left out. A block reads what the blocks before it, rounded already, hand on,
and is to hand on what the float model does there: so later blocks make up for earlier ones. Activations are quantized
all the while.

    loss of a step = |block(x) - target|^2 / the same, rounded to nearest  +  decide * mean of 1 - |2 h - 1|^beta

Both are shares, so that one weight fits all blocks: the published one compares a sum over weights with an error in the
units of a layer's outputs. beta falls by a cosine; for the first steps there is no second term. Patch
embedding and head keep nearest rounding, as with gptq (models/rounding.py).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvit.distillation.pool import Order, Pool
from qvit.distillation.progress import load_state, save_state
from qvit.errors import QvitError
from qvit.models.execution import Execution
from qvit.models.floating import Float
from qvit.models.relaxed import Relaxations, executions_of, relax, settle
from qvit.models.streams import begin_stream, pass_stream
from qvit.models.vit import Block, ViT
from qvit.recipe import Reconstruction
from qvit.synthesis.teacher import hash_state

# Errors below this share of the target's mean square are rounding noise of fp32, and no unit.
_LEAST = 1e-10


def reconstruct(
    teacher: ViT,
    student: ViT,
    pool: Pool,
    settings: Reconstruction,
    *,
    seed: int,
    folder: Path | None = None,
    done: Callable[[str], None] | None = None,
) -> list[dict[str, float]]:
    """Learn the rounding of every block's Linears, in place; they end on their grids.

    The residual stream of all images is kept twice: 1.2 MB an image for ViT-B. With a folder, a run that was
    interrupted goes on behind its last finished block and ends in the same bits, at the same number of threads.

    Args:
        teacher: The float model.
        student: Its folded copy with ranges, from `set_weight_ranges`; or the `vit` of a StaticStudent that is
            calibrated, whose grids stay as they are then: ranges do not follow weights that lie on a grid.
        pool: Images; labels are not looked at.
        settings: See Reconstruction. With a scale_lr above 0 the weights' scales move, too.
        seed: Of the order of the images.
        folder: Where finished blocks are kept; None for nowhere.
        done: Told the name of every finished block.

    Returns:
        Of every block: `nearest` and `learned`, the mean square error of what it hands on by each rounding, in units of
        the target's mean square; `changed`, the share of codes that are not the nearest; `undecided`, the share of
        roundings that were more than 0.05 from both codes at the end.

    Raises:
        UsageError: The folder holds another run.
        InputError: The folder's file is damaged.
        QvitError: A loss is not finite.
    """
    for block in student.blocks:
        assert isinstance(block, Block)
        for dense in block.linears():
            dense.hold()
    identity = _describe(student, pool, settings, seed)
    found: list[dict[str, float]] = []
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        state = load_state(folder, identity, str(student.patch_embed.gain.device))
        if state is not None:
            student.load_state_dict(state["model"])
            found = state["found"]
    order = Order(torch.arange(len(pool)), min(settings.batch, len(pool)), seed)
    run, relaxed = executions_of(student)
    inputs = begin_stream(student, pool.images, run)
    targets = begin_stream(teacher, pool.images, Float())
    for i, block in enumerate(student.blocks):
        assert isinstance(block, Block)
        targets = pass_stream(teacher.blocks[i], targets, Float())
        if i == len(found):
            unit = _Unit(block, run, inputs, targets)
            found.append(_reconstruct_block(unit, relaxed, order, settings))
            if folder is not None:
                state = {"run": identity, "model": student.state_dict(), "found": found}
                save_state(folder, state)
            if done is not None:
                done(f"block {i + 1}")
        inputs = pass_stream(block, inputs, run)
    return found


@dataclass(frozen=True, slots=True)
class _Unit:
    """A block of the student, how it computes, and what it reads and is to hand on, [N, T, D] of all images."""

    block: Block
    run: Execution
    inputs: Tensor
    targets: Tensor

    def error(self) -> float:
        """Mean square, of the weights as they are."""
        return float(_error(pass_stream(self.block, self.inputs, self.run), self.targets))


def _reconstruct_block(
    unit: _Unit, relaxed: Callable[[Relaxations], Execution], order: Order, settings: Reconstruction
) -> dict[str, float]:
    """What `reconstruct` returns of a block."""
    size = max(float(unit.targets.float().square().mean()), 1e-30)
    nearest = unit.error() / size
    relaxations = relax(unit.block)
    codes = [dense.codes_of(dense.weight).detach() for dense in relaxations]
    scale = size * max(nearest, _LEAST)
    _learn(unit, relaxations, relaxed(relaxations), order, settings, scale)
    shares = torch.cat([r.share().flatten() for r in relaxations.values()])
    settle(relaxations)
    pairs = zip(relaxations, codes, strict=True)
    changed = torch.cat([(dense.codes_of(dense.weight) != old).flatten() for dense, old in pairs])
    return {
        "nearest": float(f"{nearest:.6g}"),
        "learned": float(f"{unit.error() / size:.6g}"),
        "changed": round(float(changed.float().mean()), 6),
        "undecided": round(float(((shares - 0.5).abs() < 0.45).float().mean()), 6),
    }


def _learn(
    unit: _Unit,
    relaxations: Relaxations,
    run: Execution,
    order: Order,
    settings: Reconstruction,
    scale: float,
) -> None:
    """Take the steps; `run`: with the relaxations; `scale`: the error by which that of a step is divided."""
    every = list(relaxations.values())
    groups = [{"params": [r.logits for r in every], "lr": settings.lr}]
    if settings.scale_lr:
        groups.append({"params": [r.growth for r in every], "lr": settings.scale_lr})
    optimiser = torch.optim.Adam(groups)
    learned = [parameter for group in groups for parameter in group["params"]]
    for step in range(settings.steps):
        some = order.at(step).to(unit.inputs.device)
        loss = _error(unit.block(unit.inputs[some], run), unit.targets[some]) / scale
        beta = exponent(step, settings)
        if beta is not None:
            pressure = torch.cat([r.pressure(beta).flatten() for r in every])
            loss = loss + settings.decide * pressure.mean()
        # Gradients of nothing else: the block's own parameters keep what they have.
        for parameter, gradient in zip(learned, torch.autograd.grad(loss, learned), strict=True):
            parameter.grad = gradient
        if not torch.isfinite(loss):
            raise QvitError(
                f"step {step} of a block's rounding had a loss that is not finite; lower weights.reconstruction.lr or "
                "weights.reconstruction.scale_lr with --set"
            )
        optimiser.step()


def exponent(step: int, settings: Reconstruction) -> float | None:
    """beta at a step, counted from 0; None while roundings are free."""
    first = round(settings.free * settings.steps)
    if step < first:
        return None
    done = (step - first) / max(1, settings.steps - first)
    return settings.beta_final + (settings.beta - settings.beta_final) * 0.5 * (1 + cos(pi * done))


def _error(found: Tensor, target: Tensor) -> Tensor:
    return (found.float() - target.float()).square().mean()


def _describe(student: ViT, pool: Pool, settings: Reconstruction, seed: int) -> dict[str, Any]:
    """Everything that decides the bits."""
    return {
        "settings": asdict(settings),
        "seed": seed,
        "images": Pool(pool.images).digest(),
        "student": hash_state(student),
        "threads": torch.get_num_threads(),
        "device": student.patch_embed.gain.device.type,
        "torch": str(torch.__version__),
    }
