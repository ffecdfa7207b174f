"""The simulated execution with weights that have not decided yet how they are rounded."""

from collections.abc import Mapping

import torch

from qvit.models.dense import Dense
from qvit.models.simulated import Simulated
from qvit.models.vit import Block
from qvit.quant.relaxation import Relaxation
from qvit_kernels.reference import Weight


class Relaxed(Simulated):
    """Simulated, but for the weights of some Linears, whose codes lie anywhere between two whole numbers."""

    def __init__(self, relaxations: Mapping[Dense, Relaxation]) -> None:
        self.relaxations = relaxations

    def weight_of(self, dense: Dense) -> Weight:
        """See Simulated."""
        relaxation = self.relaxations.get(dense)
        if relaxation is None:
            return super().weight_of(dense)
        assert dense.weight_scale is not None
        scale = dense.weight_scale.detach() * relaxation.growth.exp()
        return Weight(relaxation(), scale, dense.weight_multiplier)


def relax(block: Block) -> dict[Dense, Relaxation]:
    """A relaxation for each Linear of a block, starting at its float weights."""
    return {
        dense: Relaxation(dense.weight.detach(), dense.steps().detach(), dense.scheme.weight.bits)
        for dense in block.linears()
    }


@torch.no_grad()
def settle(relaxations: Mapping[Dense, Relaxation]) -> None:
    """Put every weight on the code that it has decided for, and every scale where it has grown to, in place."""
    for dense, relaxation in relaxations.items():
        assert dense.weight_scale is not None
        dense.weight_scale.mul_(relaxation.growth.exp())
        steps = dense.steps()
        grouped = relaxation.decided().unflatten(-1, (steps.shape[-1], -1))
        dense.weight.copy_((grouped * steps.unsqueeze(-1)).flatten(-2))
