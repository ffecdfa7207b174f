"""What the launches of a pass would take on a card that is not here, planned on the meta device."""

from typing import Any

import torch

from qvit.deployment.listening import hear_ops
from qvit.errors import RequirementError, UsageError
from qvit.models.config import ViTConfig
from qvit.models.dense import IntegerDense
from qvit.models.vit import ViT
from qvit.quant.schemes import ModelScheme
from qvit_kernels import counts, tiles
from qvit_kernels.counts import Work

__all__ = ["Work", "foresee"]


def foresee(
    config: ViTConfig, scheme: ModelScheme, batch: int, capability: int
) -> dict[str, list[Work]]:
    """The launches of a pass over `batch` images on a card of a compute capability (90 for 9.0), by the name of the
    layer that they belong to, in order.

    Raises RequirementError without Triton, which plans them, and UsageError for what no kernel computes.
    """
    try:
        from qvit_kernels.fused_plans import plan_of
    except ImportError as error:
        raise RequirementError(
            f"launches of a GPU are planned by Triton, which is not installed: {error}"
        ) from error
    found: dict[str, list[Work]] = {}

    def note(layer: str, op: str, arguments: tuple[Any, ...], _: object) -> None:
        with tiles.planning_for(capability):
            plan = plan_of(op, arguments)
        if plan.rest is not None:
            raise UsageError(
                f"{layer} cannot be modelled, since no kernel does it: {plan.rest.reason}"
            )
        works = [counts.work_of(launch, capability) for launch in plan.launches]
        found.setdefault(layer, []).extend(works)

    with torch.device("meta"):
        vit = ViT(config, scheme, IntegerDense)
        images = torch.empty(batch, config.in_chans, *config.image_size)
    hear_ops(vit, images, "triton", note)
    return found
