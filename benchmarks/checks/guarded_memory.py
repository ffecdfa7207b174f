"""Memory with canaries: what a kernel writes beside its results shows, and what it leaves unwritten too."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

_GUARD = 4096  # bytes before and after; keeps the alignment of a fresh allocation
_CANARY = 0xA5
_POISON = 0x55


def surround(tensor: Tensor, around: int = _CANARY) -> Tensor:
    """A copy of a tensor, with its strides, between bytes of `around`."""
    inner = _between(tensor.untyped_storage().nbytes(), tensor.device, around).view(tensor.dtype)
    start = inner.storage_offset() + tensor.storage_offset()
    return inner.as_strided(tensor.shape, tensor.stride(), start).copy_(tensor)


def is_unbroken(tensor: Tensor, around: int = _CANARY) -> bool:
    """Whether nothing was written beside a tensor that `surround` or a `guarded_memory` block made."""
    raw = torch.tensor([], dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
    return bool((raw[:_GUARD] == around).all() & (raw[-_GUARD:] == around).all())


def _between(size: int, device: torch.device, around: int) -> Tensor:
    """Some bytes, contents undefined, between bytes of `around`."""
    raw = torch.full((size + 2 * _GUARD,), around, dtype=torch.uint8, device=device)
    return raw[_GUARD : _GUARD + size]


class Guards:
    """The allocations of a `guarded_memory` block."""

    def __init__(self) -> None:
        self._made: list[Tensor] = []

    def count_broken(self) -> int:
        """Allocations that something was written beside."""
        return sum(not is_unbroken(tensor) for tensor in self._made)

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Poisoned memory between canaries: NaN in floats, 0x55 in all else."""
        raw = _between(math.prod(shape) * dtype.itemsize, device, _CANARY).fill_(_POISON)
        self._made.append(
            raw
        )  # not what is handed out: Triton's interpreter gives it another storage
        held = raw.view(dtype).view(shape)
        return held.fill_(float("nan")) if dtype.is_floating_point else held


@contextmanager
def guarded_memory() -> Iterator[Guards]:
    """Every tensor that Python code allocates uninitialized in this block lies between canaries, poisoned."""
    guards = Guards()
    with ExitStack() as patches:
        for owner, name, make in (
            (torch, "empty", _empty),
            (torch, "empty_like", _empty_like),
            (Tensor, "new_empty", _new_empty),
        ):
            patched = make(guards, getattr(owner, name))
            patches.enter_context(mock.patch.object(owner, name, patched))
        yield guards


def _shape_of(size: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else tuple(size)


def _empty(guards: Guards, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def empty(*size: Any, **options: Any) -> Tensor:
        device = torch.device(options.get("device") or "cpu")
        if device.type == "meta" or set(options) - {"dtype", "device"}:
            return original(*size, **options)
        return guards.allocate(_shape_of(size), options.get("dtype") or torch.float32, device)

    return empty


def _empty_like(guards: Guards, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def empty_like(like: Tensor, **options: Any) -> Tensor:
        if like.is_meta or not like.is_contiguous() or set(options) - {"dtype"}:
            return original(like, **options)
        return guards.allocate(tuple(like.shape), options.get("dtype") or like.dtype, like.device)

    return empty_like


def _new_empty(guards: Guards, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def new_empty(like: Tensor, *size: Any, **options: Any) -> Tensor:
        if like.is_meta or set(options) - {"dtype", "device"}:
            return original(like, *size, **options)
        device = torch.device(options.get("device") or like.device)
        return guards.allocate(_shape_of(size), options.get("dtype") or like.dtype, device)

    return new_empty
