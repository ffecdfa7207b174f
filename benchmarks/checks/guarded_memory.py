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


class Guards:
    """The allocations of a `guarded_memory` block."""

    def __init__(self) -> None:
        self._raw: list[tuple[Tensor, int]] = []
        self._allocate = torch.empty

    def shelter(self, tensor: Tensor) -> Tensor:
        """A copy of a contiguous operand between bytes of 0xFF: NaN and -1 for whoever reads beyond its ends."""
        held = self._place(tuple(tensor.shape), tensor.dtype, tensor.device, around=0xFF)
        return held.copy_(tensor)

    def count_broken(self) -> int:
        """Allocations that something was written beside."""
        return sum(not _is_whole(raw, size) for raw, size in self._raw)

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Poisoned memory between canaries: NaN in floats, 0x55 in all else."""
        held = self._place(shape, dtype, device, around=_CANARY)
        if dtype.is_floating_point:
            return held.fill_(float("nan"))
        flat = self._raw[-1][0]
        flat[_GUARD : _GUARD + self._raw[-1][1]].fill_(_POISON)
        return held

    def _place(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, around: int
    ) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        # whole multiples of 16, so that raw bytes can be viewed as any dtype
        total = (size + 2 * _GUARD + 15) // 16 * 16
        raw = self._allocate(total, dtype=torch.uint8, device=device).fill_(around)
        if around == _CANARY:
            self._raw.append((raw, size))
        return raw[_GUARD : _GUARD + size].view(dtype).view(shape)


def _is_whole(raw: Tensor, size: int) -> bool:
    before, after = raw[:_GUARD], raw[_GUARD + size :]
    return bool((before == _CANARY).all() & (after == _CANARY).all())


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
