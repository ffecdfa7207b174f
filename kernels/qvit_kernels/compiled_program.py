"""Programs of the compiled path: operations on given memory, run by one call.

A step holds addresses, so tensors must be contiguous and stay where they are; a `Program` keeps them alive.
"""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qvit_kernels import compiled_library, reference
from qvit_kernels.reference import BlockTransform

_KINDS = {"pixels": 0, "rows": 1, "linear": 2, "qkv": 3, "attention": 4}
ACTIVATIONS = {None: 0, "none": 1, "tanh": 2}

# Members of `Step` in vnni/step.h, in its order: i whole number, f double, p address.
_MEMBERS = (
    "kind:i together:i rows:i x_image:i out_image:i x:p x_scale:p x_pitch:i groups:i k:i n:i "
    "norm_weight:p norm_bias:p k_weight:p k_bias:p eps:f "
    "panels:p starts:p w_scale:p bias:p residual:p activation:i "
    "signs:p block:i block_norm:f group:i given:p steps:f low:f high:f codes:p scales:p out:p "
    "prefix:i heads:i tokens:i width:i q:p key:p v:p q_scale:p k_scale:p v_scale:p "
    "v_image:i v_head:i v_token:i v_channel:i softmax_scale:f softmax_max:f "
    "channels:i image_height:i image_width:i patch_height:i patch_width:i patch_columns:i"
)
_TYPES = {"i": ctypes.c_int64, "f": ctypes.c_double, "p": ctypes.c_void_p}


class _Step(ctypes.Structure):
    _fields_ = tuple(  # pyright: ignore[reportAssignmentType]
        (name, _TYPES[kind]) for name, _, kind in (m.partition(":") for m in _MEMBERS.split())
    )


@dataclass(frozen=True, slots=True)
class Panels:
    """A weight as products read it. panels: int8, 64 rows of the weight in each; starts: int32 [groups of x, N up to a
    multiple of 64], what the sums begin at; k: columns of the weight; n: rows.
    """

    panels: Tensor
    starts: Tensor
    n: int
    k: int

    @property
    def groups(self) -> int:
        """Of the activations that it is for."""
        return self.starts.shape[0]


def pack_weight(integers: Tensor, groups: int) -> Panels:
    """int8 [N, K] -> Panels for activations with `groups` scales a row. The library must be loaded."""
    library = compiled_library.loaded()
    assert library is not None
    integers = integers.contiguous()
    n, k = integers.shape
    padded = -(-n // 64) * 64
    with torch.inference_mode(False):
        panels = torch.empty(padded * (-(-k // 4) * 4), dtype=torch.int8, device="cpu")
        starts = torch.empty((groups, padded), dtype=torch.int32, device="cpu")
    library.qvit_pack_weight(
        integers.data_ptr(), n, k, groups, panels.data_ptr(), starts.data_ptr()
    )
    return Panels(panels, starts, n, k)


Members = dict[str, Any]  # of a step: tensors (or None) for addresses, numbers for the others


def grid(bits: int, width: int, group: int, given: Tensor | None) -> Members:
    """How rows of `width` values are quantized: group 0 is the row."""
    low, high = reference.code_range(bits)
    steps = reference.steps_of(bits)
    scales = None if given is None else given.contiguous()
    return {"steps": steps, "low": low, "high": high, "group": group or width, "given": scales}


def prefix(count: int, codes: Tensor) -> Members:
    """Rows of an image, the first of codes [..., T, K], that have 8 bits whatever the grid."""
    return {"prefix": count, "tokens": codes.shape[-2]} if count else {}


def transform(value: BlockTransform | None) -> Members:
    """A block transform of a power of two, or none."""
    if value is None:
        return {}
    return {
        "signs": value.signs,
        "block": value.block,
        "block_norm": 1.0 / math.sqrt(value.block),
    }


def operand(codes: Tensor, scale: Tensor, rows: int) -> Members:
    """Quantized rows [..., K] with scales [..., G] or [1, G]."""
    groups = scale.shape[-1]
    static = scale.numel() == groups and rows != 1
    return {"x": codes, "x_scale": scale, "x_pitch": 0 if static else groups, "groups": groups}


def weight(panels: Panels, scale: Tensor, bias: Tensor | None) -> Members:
    """The right side of a product."""
    return {
        "panels": panels.panels, "starts": panels.starts, "w_scale": scale, "bias": bias,
        "k": panels.k, "n": panels.n,
    }  # fmt: skip


def values(v: Tensor) -> Members:
    """Codes of V [B, H, T, d] in memory of any layout."""
    names = ("v_image", "v_head", "v_token", "v_channel")
    return {"v": v, **dict(zip(names, v.stride(), strict=True))}


class Program:
    """Operations in their order, for one image or for all of an op. Not for two callers at a time: what it writes to is
    its own.

    steps: one list for each thread that may take an image alone, alike but for the memory that they write to.
    """

    def __init__(self, *steps: Sequence[Members]) -> None:
        library = compiled_library.loaded()
        assert library is not None
        assert library.qvit_size_of_step() == ctypes.sizeof(_Step)
        self._library = library
        self._kept = [[tuple(step.values()) for step in of_thread] for of_thread in steps]
        self._arrays = [(_Step * len(s))(*map(_step, s)) for s in steps]
        self._addresses = (ctypes.c_void_p * len(steps))(*map(ctypes.addressof, self._arrays))

    @property
    def threads(self) -> int:
        """How many threads may take images alone."""
        return len(self._arrays)

    def point(self, index: int, **addresses: Tensor) -> None:
        """Let a step of every thread read from, or write to, other memory; it must be alive when the program runs."""
        for array in self._arrays:
            for name, tensor in addresses.items():
                setattr(array[index], name, tensor.data_ptr())

    def stride(self, index: int, **strides: int) -> None:
        """How far a step's operand (`x_image`) or result (`out_image`) lies from that of the next image, in bytes."""
        for array in self._arrays:
            for name, value in strides.items():
                setattr(array[index], name, value)

    def run(self, batch: int = 1) -> None:
        """Compute with as many threads as torch takes; of a batch, no more than have lists of steps."""
        self._run(batch, None)

    def time(self, batch: int = 1) -> list[float]:
        """Compute; return the seconds that each step took the first thread, a mean over the images it had a part in."""
        count = len(self._arrays[0])
        seconds = (ctypes.c_double * (count + 1))()
        self._run(batch, ctypes.addressof(seconds))
        return [taken / seconds[count] for taken in seconds[:count]]

    def _run(self, batch: int, seconds: int | None) -> None:
        threads = torch.get_num_threads()
        if batch > 1:
            # never more: a thread without a list of its own would read beyond them
            threads = min(threads, self.threads)
        self._library.qvit_run(
            ctypes.addressof(self._addresses), len(self._arrays[0]), threads, batch, seconds
        )


def _step(members: Members) -> _Step:
    step = _Step(kind=_KINDS[members["kind"]])
    for name, value in members.items():
        if name != "kind" and value is not None:
            setattr(step, name, value.data_ptr() if isinstance(value, Tensor) else value)
    return step
