"""What a check of an op is: a call on operands that depend on its name only, and how exact its result has to be."""

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

import torch

from benchmarks.cases.kernels import Call
from benchmarks.cases.operands import Operands
from qvit_kernels.reference import Quantized, Weight

ROWS = (0, 1, 16, 17, 63, 197, 394)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
Make = Callable[[Operands], Call]


@dataclass(frozen=True, slots=True)
class Check:
    """One call of an op.

    Attributes:
        name: "op/what"; unique.
        make: Makes the operands on a device and returns the call, a function of the backend.
        exact: Nothing in it may differ in any bit: no exp, no GELU, no sum of a LayerNorm.
        fused: A kernel must compute it: the fall-back to the reference would agree with the reference.
        large: Of a model's size: the expected result is computed where the kernel runs, and otherwise on the CPU.
        dry: Small enough for the interpreter of a dry run.
    """

    name: str
    make: Make
    exact: bool = True
    fused: bool = True
    large: bool = False
    dry: bool = False

    @property
    def op(self) -> str:
        """The op of qvit_kernels.ops."""
        return self.name.partition("/")[0]

    def call(self, device: torch.device) -> Call:
        """The call, on operands that depend on the name only, unless it is large: then on the device too."""
        return self.make(Operands(device, crc32(self.name.encode()), None if self.large else "cpu"))


# weight bits, columns that share a multiplier, packed activations
WEIGHTS = {
    "w8a8": (8, 0, False),
    "w4a8": (4, 0, False),
    "w4a8 group 16": (4, 16, False),
    "w4a8 group 32": (4, 32, False),
    "w4a8 group 64": (4, 64, False),
    "w4a4": (4, 0, True),
    "w4a4 group 16": (4, 16, True),
    "w4a4 group 32": (4, 32, True),
    "w4a4 group 64": (4, 64, True),
}


def weight_of(operands: Operands, n: int, k: int, kind: str) -> Weight:
    """A weight [n, k] of a kind."""
    bits, group, _ = WEIGHTS[kind]
    return operands.weight(n, k, bits=bits, group=group)


def input_of(operands: Operands, shape: tuple[int, ...], kind: str, groups: int = 1) -> Quantized:
    """Activations that go with a kind of weight."""
    packed = WEIGHTS[kind][2]
    return operands.rows(*shape, bits=4 if packed else 8, groups=groups, packed=packed)
