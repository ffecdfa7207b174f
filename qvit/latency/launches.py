"""How many pieces of work a pass hands out: what launch gaps are counted in."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qvit.latency.floats import Runner
from qvit.latency.quantized import Quantized

# What the driver is asked for, by the names in a trace; a graph is one.
_LAUNCHES = (
    "cudaLaunchKernel",
    "cuLaunchKernel",
    "cudaGraphLaunch",
    "cudaMemcpyAsync",
    "cudaMemsetAsync",
)


def count_launches(
    runner: Runner, call: Callable[[], object], own: Quantized | None, device: str, mode: str
) -> int | None:
    """Launches of a pass on a card, from a trace; on a CPU operations that torch computes one by one, 1 for a pass that
    is one program. None for what torch cannot look into: compiled code and other libraries on a CPU.
    """
    if device.startswith("cuda"):
        return _count_on_device(call)
    if own is not None and own.model.explain().one_program:
        return 1
    if mode != "eager" or runner.model is None:
        return None
    with _Counting() as counting:
        call()
    return counting.count


def _count_on_device(call: Callable[[], object]) -> int:
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        call()
        torch.cuda.synchronize()
    return sum(event.count for event in trace.key_averages() if event.key.startswith(_LAUNCHES))


class _Counting(TorchDispatchMode):
    """Counts operations that compute: a view or fresh memory is no work."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> object:
        name = func.name().partition("::")[2]
        self.count += not (func.is_view or name.startswith(("empty", "detach", "_unsafe_view")))
        return func(*args, **(kwargs or {}))
