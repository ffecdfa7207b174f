"""Executions with weights that have not decided yet how they are rounded: of qvit's own scheme, and of static ones."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qvit.models.dense import Dense
from qvit.models.execution import Execution
from qvit.models.fake_quantized import FakeQuantized
from qvit.models.simulated import Simulated
from qvit.models.static import Static, StaticDense
from qvit.models.vit import Block, ViT
from qvit.quant.relaxation import Relaxation
from qvit_kernels.reference import Weight

Relaxations = Mapping[Dense | StaticDense, Relaxation]


class Relaxed(FakeQuantized):
    """FakeQuantized, but for the weights of some Linears, whose codes lie anywhere between two whole numbers."""

    def __init__(self, relaxations: Relaxations) -> None:
        self.relaxations = relaxations

    def weight_of(self, dense: Dense) -> Weight:
        """See FakeQuantized."""
        relaxation = self.relaxations.get(dense)
        if relaxation is None:
            return super().weight_of(dense)
        assert dense.weight_scale is not None
        scale = dense.weight_scale.detach() * relaxation.growth.exp()
        return Weight(relaxation(), scale, dense.weight_multiplier)


class RelaxedStatic(Static):
    """The same of Static."""

    def __init__(self, relaxations: Relaxations) -> None:
        self.relaxations = relaxations

    def weight_of(self, dense: StaticDense) -> Tensor:
        """See Static."""
        relaxation = self.relaxations.get(dense)
        if relaxation is None:
            return super().weight_of(dense)
        return relaxation() * (dense.steps() * relaxation.growth.exp().unsqueeze(-1))


def executions_of(student: ViT) -> tuple[Execution, Callable[[Relaxations], Execution]]:
    """How a student computes, and how it does with weights that are undecided."""
    if any(isinstance(module, StaticDense) for module in student.modules()):
        return Static(), RelaxedStatic
    return Simulated(), Relaxed


def relax(block: Block) -> dict[Dense | StaticDense, Relaxation]:
    """A relaxation for each Linear of a block, starting at its float weights, on grids that stay from now on."""
    for dense in block.linears():
        dense.hold()
    return {
        dense: Relaxation(dense.weight.detach(), dense.steps().detach(), dense.limits())
        for dense in block.linears()
    }


@torch.no_grad()
def settle(relaxations: Relaxations) -> None:
    """Put every weight on the code that it has decided for, and every scale where it has grown to, in place."""
    for dense, relaxation in relaxations.items():
        dense.grow(relaxation.growth.exp())
        steps = dense.steps()
        grouped = relaxation.decided().unflatten(-1, (steps.shape[-1], -1))
        dense.weight.copy_((grouped * steps.unsqueeze(-1)).flatten(-2))
