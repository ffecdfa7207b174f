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

from collections.abc import Callable, Mapping
from dataclasses import asdict
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvit.distillation.pool import Order, Pool
from qvit.distillation.progress import digest, load_state, save_state
from qvit.errors import QvitError
from qvit.models.dense import Dense
from qvit.models.floating import Float
from qvit.models.relaxed import Relaxed, relax, settle
from qvit.models.simulated import Simulated
from qvit.models.streams import begin_stream, pass_stream
from qvit.models.vit import Block, ViT
from qvit.quant.relaxation import Relaxation
from qvit.recipe import Reconstruction

# Errors below this share of the target's mean square are rounding noise of fp32, and no unit.
_LEAST = 1e-10


def reconstruct(
    teacher: ViT,
    folded: ViT,
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
        folded: Its folded copy with ranges, from `set_weight_ranges`.
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
    identity = _describe(folded, pool, settings, seed)
    found: list[dict[str, float]] = []
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        state = load_state(folder, identity, str(folded.patch_embed.gain.device))
        if state is not None:
            folded.load_state_dict(state["model"])
            found = state["found"]
    order = Order(torch.arange(len(pool)), min(settings.batch, len(pool)), seed)
    inputs = begin_stream(folded, pool.images, Simulated())
    targets = begin_stream(teacher, pool.images, Float())
    for i, block in enumerate(folded.blocks):
        assert isinstance(block, Block)
        targets = pass_stream(teacher.blocks[i], targets, Float())
        if i == len(found):
            found.append(_reconstruct_block(block, inputs, targets, order, settings))
            if folder is not None:
                state = {"run": identity, "model": folded.state_dict(), "found": found}
                save_state(folder, state)
            if done is not None:
                done(f"block {i + 1}")
        inputs = pass_stream(block, inputs, Simulated())
    return found


def _reconstruct_block(
    block: Block, inputs: Tensor, targets: Tensor, order: Order, settings: Reconstruction
) -> dict[str, float]:
    """inputs, targets: [N, T, D] of all images; what `reconstruct` returns of a block."""
    size = max(float(targets.float().square().mean()), 1e-30)
    nearest = _mean_error(block, inputs, targets) / size
    relaxations = relax(block)
    codes = [dense.quantized_weight().codes.detach() for dense in relaxations]
    _learn(block, relaxations, inputs, targets, order, settings, size * max(nearest, _LEAST))
    shares = torch.cat([r.share().flatten() for r in relaxations.values()])
    settle(relaxations)
    pairs = zip(relaxations, codes, strict=True)
    changed = torch.cat([(dense.codes_of(dense.weight) != old).flatten() for dense, old in pairs])
    return {
        "nearest": float(f"{nearest:.6g}"),
        "learned": float(f"{_mean_error(block, inputs, targets) / size:.6g}"),
        "changed": round(float(changed.float().mean()), 6),
        "undecided": round(float(((shares - 0.5).abs() < 0.45).float().mean()), 6),
    }


def _learn(
    block: Block,
    relaxations: Mapping[Dense, Relaxation],
    inputs: Tensor,
    targets: Tensor,
    order: Order,
    settings: Reconstruction,
    unit: float,
) -> None:
    """Take the steps; `unit`: the error by which that of a step is divided."""
    run, every = Relaxed(relaxations), list(relaxations.values())
    groups = [{"params": [r.logits for r in every], "lr": settings.lr}]
    if settings.scale_lr:
        groups.append({"params": [r.growth for r in every], "lr": settings.scale_lr})
    optimiser = torch.optim.Adam(groups)
    learned = [parameter for group in groups for parameter in group["params"]]
    for step in range(settings.steps):
        some = order.at(step).to(inputs.device)
        loss = _error(block(inputs[some], run), targets[some]) / unit
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


def _mean_error(block: Block, inputs: Tensor, targets: Tensor) -> float:
    """Of the weights as they are, over all images."""
    return float(_error(pass_stream(block, inputs, Simulated()), targets))


def _error(found: Tensor, target: Tensor) -> Tensor:
    return (found.float() - target.float()).square().mean()


def _describe(folded: ViT, pool: Pool, settings: Reconstruction, seed: int) -> dict[str, Any]:
    """Everything that decides the bits."""
    return {
        "settings": asdict(settings),
        "seed": seed,
        "images": Pool(pool.images).digest(),
        "student": digest(folded),
        "threads": torch.get_num_threads(),
        "device": folded.patch_embed.gain.device.type,
        "torch": str(torch.__version__),
    }
