"""Memory that the ops of a thread use again and again for their intermediates.

Fresh megabytes cost page faults when the allocator has given the last ones back: with them an op
of two 1.2 MB intermediates took twice its time.
"""

import math
import threading

import torch
from torch import Tensor


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.by_role: dict[str, Tensor] = {}


_buffers = _Buffers()


def scratch(role: str, shape: tuple[int, ...]) -> Tensor:
    """An fp32 tensor of this shape, contents undefined, valid until the thread asks for the role again.

    An op must not let one out: not as a result, not across a yield to another op.
    """
    size = math.prod(shape)
    held = _buffers.by_role.get(role)
    if held is None or held.numel() < size:
        with torch.inference_mode(False):  # an inference tensor could not be written to elsewhere
            held = torch.empty(size, dtype=torch.float32)
        _buffers.by_role[role] = held
    return held[:size].view(shape)
