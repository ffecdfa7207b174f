"""What one pass really dispatches: torch's own operations, within ours too, and every launch of a Triton kernel."""

import inspect
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch._C import DispatchKey
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter

from tests.conftest import allocators

# Memory and views: no kernel runs for them.
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
WITHOUT_KERNEL = {"detach", "_unsafe_view", "alias", "lift_fresh"}


class Trace(TorchDispatchMode):
    """Attributes:
    launches: Names of the Triton kernels, in order.
    torch_ops: Names of torch's operations that would launch a kernel on a card, in order.
    allocations: Shapes and dtypes of the memory that was asked for, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[str] = []
        self.torch_ops: list[str] = []
        self.allocations: list[tuple[Any, ...]] = []
        self.quiet = False  # within a kernel: the interpreter computes with torch, too

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # a mode is off while it handles a call: on again for what an op is made of
            if func.namespace == "qvit":
                return func._op_dk(DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
            parts = func.decompose(*args, **kwargs)  # of reshape, to, contiguous: a copy or none
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if self.quiet or name in WITHOUT_KERNEL:
            return result
        if name in ALLOCATIONS:
            self.allocations.append((tuple(result.shape), result.dtype))
        elif not _is_view(func):
            self.torch_ops.append(name)
        return result


def _is_view(func: Any) -> bool:
    returned = func._schema.returns
    return bool(returned) and all(r.alias_info and not r.alias_info.is_write for r in returned)


@contextmanager
def tracing(*, execute: bool = True) -> Iterator[Trace]:
    """Trace what runs in the block. Without `execute` kernels are noted where Triton would launch them, and not run."""
    trace = Trace()
    launch = interpreter.GridExecutor.__call__

    def noted(executor: Any, *args: Any, **kwargs: Any) -> None:
        trace.launches.append(executor.fn.__name__)
        if not execute:
            return
        trace.quiet = True
        try:
            launch(executor, *args, **kwargs)
        finally:
            trace.quiet = False

    with ExitStack() as stack:
        for owner, name in allocators():  # what poisons memory is not the pass
            clean = inspect.unwrap(getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, clean))
        stack.enter_context(mock.patch.object(interpreter.GridExecutor, "__call__", noted))
        stack.enter_context(torch.no_grad())
        yield stack.enter_context(trace)


def counted(names: list[str]) -> dict[str, int]:
    """Names with their number, as a plain dictionary."""
    return dict(Counter(names))
