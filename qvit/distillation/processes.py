"""Processes: several machines train one student, each on its share of every batch.

Gradients are averaged in one flat tensor after the backward pass. That is less than torch's DistributedDataParallel
overlaps, and asks less: a student may answer with any structure, leave parameters unused, and is the same module alone
and in company. All processes start from the same weights and buffers and take the same step. Static ranges that follow
the activations go by the extremes of the whole batch, which are exchanged on the way forward (share_batches in
qvit/quant/tracking.py); nothing else is.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among all: `rank` of `count`."""

    rank: int = 0
    count: int = 1

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in place."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([t.detach().flatten().float() for t in tensors])
        distributed.all_reduce(flat)
        flat /= self.count
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def highest(self, values: Tensor) -> None:
        """Replace each value by the largest that a process has, in place."""
        if self.count > 1:
            distributed.all_reduce(values, distributed.ReduceOp.MAX)

    def align(self, module: nn.Module) -> None:
        """Give every process the parameters and buffers of the first."""
        if self.count > 1:
            for tensor in module.state_dict().values():
                distributed.broadcast(tensor, 0)

    def alike(self, number: int, device: torch.device) -> bool:
        """Whether all processes have the same number; all of them get the same answer. `device`: of their tensors."""
        if self.count == 1:
            return True
        ends = torch.tensor([number, -number], device=device)
        self.highest(ends)
        return int(ends[0]) == -int(ends[1])

    def meet(self) -> None:
        """Wait until all are here."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def joined(device: str = "cpu") -> Iterator[Processes]:
    """Take a place among the processes that torchrun started; alone without it. Leaves the group on the way out."""
    from timm.utils.distributed import is_distributed_env

    if not is_distributed_env():
        yield Processes()
        return
    backend = "nccl" if device.startswith("cuda") else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(hours=2))
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
