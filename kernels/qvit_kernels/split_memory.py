"""Memory in which the programs that share one tile of a product meet: sums and arrivals, zero between launches.

Launches on one stream follow each other, and every one leaves zeros, so that a stream needs one such memory. A CUDA
graph may be replayed on any stream, beside another one: it needs its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_Memory = dict[tuple[int, int], tuple[Tensor, Tensor]]  # by device and stream

_of_process: _Memory = {}
_of_capture: ContextVar[_Memory | None] = ContextVar("qvit_split_memory", default=None)


@contextmanager
def own_split_memory() -> Iterator[None]:
    """Wrap the capture of a CUDA graph: products in it may split their sums, in memory that belongs to the graph.

    The memory is cleared by a node of the graph at each replay. Without this no product is split while a stream is
    captured: two graphs that ran side by side would add to one sum.
    """
    token = _of_capture.set({})
    try:
        yield
    finally:
        _of_capture.reset(token)


def may_split(device: torch.device) -> bool:
    """Whether products on a device, launched now, can have such memory."""
    if device.type != "cuda" or _of_capture.get() is not None:
        return True
    return not torch.cuda.is_current_stream_capturing()


def split_memory(tiles: int, values: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For `tiles` tiles of `values` sums each: sums and arrivals, int32, zero, at least as large as asked for."""
    if device.type == "meta":
        return _zeros(tiles * values, device), _zeros(tiles, device)
    memory = _of_capture.get()
    memory = _of_process if memory is None else memory
    place = (-1, 0)
    if device.type == "cuda":
        place = (device.index, torch.cuda.current_stream(device).cuda_stream)
    held = memory.get(place)
    if held is None or held[0].numel() < tiles * values or held[1].numel() < tiles:
        held = _zeros(tiles * values, device), _zeros(tiles, device)
        memory[place] = held
    return held


def _zeros(size: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # an inference tensor could not be written to elsewhere
        return torch.zeros(size, dtype=torch.int32, device=device)
