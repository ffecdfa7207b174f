"""What it means that two backends agree on an op: integers equal, or one in 100,000 off by one step."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qvit_kernels.packing import unpack_int4

# After exp, GELU or the sums of a LayerNorm, whose last bit is a backend's own.
LARGEST_SHARE = 1e-5
LARGEST_SCALE_ERROR = 1e-6
# Attention quantizes twice: one numerator of a softmax that is off by a step moves a whole row of a head by a fraction
# of a step, and some of its codes with it. In the interpreter 8e-5 of the codes were off at most, over 25 shapes.
_SOFTMAX_SHARE = 1e-4
_SOFTMAX_ROW = 32.0
# Where the row's largest value is what moves, its scale does too: in the interpreter one row of 3,462, by 0.3 %.
_SOFTMAX_SCALE_SHARE = 1e-3
_SOFTMAX_SCALES = 2.0
_SOFTMAX_SCALE_ERROR = 2e-2


def allowed_off(codes: int, *, softmax: bool) -> float:
    """How many of so many codes may be off by one step; softmax: the output of attention."""
    if softmax:
        return max(_SOFTMAX_ROW, _SOFTMAX_SHARE * codes)
    return max(1.0, LARGEST_SHARE * codes)


@dataclass(frozen=True, slots=True)
class Agreement:
    """A result beside the expected one.

    Attributes:
        codes: How many codes there are; off: how many differ; worst: by how many steps at most.
        floats: How many scales and floats there are; floats_off: how many differ in any bit; floats_far: how many by
            more than LARGEST_SCALE_ERROR; float_error: the largest relative difference, infinite where there is a NaN.
    """

    codes: int
    off: int
    worst: int
    floats: int
    floats_off: int
    floats_far: int
    float_error: float

    def fault(self, *, exact: bool, softmax: bool = False) -> str | None:
        """What is wrong; None where they agree. exact: nothing may differ in any bit; softmax: see `allowed_off`."""
        if exact and (self.off or self.floats_off):
            return f"{self.off} of {self.codes} codes and {self.floats_off} of {self.floats} floats differ"
        if self.worst > 1:
            return f"codes are off by up to {self.worst} steps"
        if self.off > allowed_off(self.codes, softmax=softmax):
            return f"{self.off} of {self.codes} codes are off by one step"
        few = softmax and self.floats_far <= max(
            _SOFTMAX_SCALES, _SOFTMAX_SCALE_SHARE * self.floats
        )
        if self.float_error > (_SOFTMAX_SCALE_ERROR if few else LARGEST_SCALE_ERROR):
            return f"{self.floats_far} of {self.floats} scales are off, by up to {self.float_error:.1e} relative"
        return None


def compare(found: object, expected: object) -> Agreement:
    """Every tensor of two results of one op: nested tuples of codes, packed codes and floats."""
    theirs, ours = _tensors(expected), _tensors(found)
    if [(t.shape, t.dtype) for t in ours] != [(t.shape, t.dtype) for t in theirs]:
        raise ValueError(f"results have other shapes or types: {_shapes(ours)}, {_shapes(theirs)}")
    pairs = list(zip(ours, theirs, strict=True))
    floats = [(a, b) for a, b in pairs if a.is_floating_point()]
    steps = [
        (_codes(a).short() - _codes(b).short()).abs() for a, b in pairs if not a.is_floating_point()
    ]
    errors = [_relative_errors(a, b) for a, b in floats]
    return Agreement(
        codes=sum(step.numel() for step in steps),
        off=sum(int((step > 0).sum()) for step in steps),
        worst=max((int(step.max()) for step in steps if step.numel()), default=0),
        floats=sum(a.numel() for a, _ in floats),
        floats_off=sum(int((~((a == b) | (a.isnan() & b.isnan()))).sum()) for a, b in floats),
        floats_far=sum(int((error > LARGEST_SCALE_ERROR).sum()) for error in errors),
        float_error=max((float(error.max()) for error in errors if error.numel()), default=0.0),
    )


def _relative_errors(a: Tensor, b: Tensor) -> Tensor:
    """Of floats against the larger of 1e-30 and the expected magnitude; infinite for a NaN."""
    error = (a.double() - b.double()).abs() / b.double().abs().clamp_min(1e-30)
    error = torch.where(a == b, 0.0, error)  # infinities that are equal have no difference
    return error.nan_to_num(nan=torch.inf)


def _codes(tensor: Tensor) -> Tensor:
    """int8 codes, unpacked where they are packed: activations, whose rows have an even length."""
    return unpack_int4(tensor, 2 * tensor.shape[-1]) if tensor.dtype == torch.uint8 else tensor


def _tensors(result: object) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    assert isinstance(result, tuple)
    return [tensor for part in result for tensor in _tensors(part)]


def _shapes(tensors: list[Tensor]) -> list[Any]:
    return [(tuple(t.shape), t.dtype) for t in tensors]
