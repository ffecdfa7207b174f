"""What counts as equal: every fault must be one."""

import pytest
import torch

from benchmarks.checks import agreement
from qvit_kernels.packing import pack_int4


def rows(n=200_000):
    return torch.randint(-100, 101, (n,), dtype=torch.int8), torch.rand(1) + 0.5


def test_equal_is_equal():
    result = rows()
    found = agreement.compare(result, (result[0].clone(), result[1].clone()))
    assert found.fault(exact=True) is None
    assert (found.codes, found.off, found.floats_off) == (200_000, 0, 0)


@pytest.mark.parametrize(("count", "step", "holds"), [(2, 1, True), (3, 1, False), (1, 2, False)])
def test_one_code_in_100_000_by_one_step(count, step, holds):
    codes, scale = rows()
    off = codes.clone()
    off[:count] += step
    found = agreement.compare((off, scale), (codes, scale))
    assert found.fault(exact=True)
    assert (found.fault(exact=False) is None) == holds


@pytest.mark.parametrize(("factor", "holds"), [(1 + 2**-23, True), (1 + 1e-5, False)])
def test_scales_to_a_millionth(factor, holds):
    codes, scale = rows()
    found = agreement.compare((codes, scale * factor), (codes, scale))
    assert found.fault(exact=True)
    assert (found.fault(exact=False) is None) == holds


def test_a_value_never_written_is_a_fault():
    y = torch.randn(8)
    found = y.clone()
    found[3] = float("nan")
    assert agreement.compare(found, y).fault(exact=False)
    assert agreement.compare(found, y).fault(exact=True)


@pytest.mark.parametrize(("off", "far", "by", "holds"), [
    (15, 1, 3e-3, True),  # what one numerator of a softmax does, off by a step
    (35, 1, 3e-3, False),
    (15, 3, 3e-3, False),
    (15, 1, 3e-2, False),
])  # fmt: skip
def test_attention_may_lose_a_row_and_not_more(off, far, by, holds):
    codes, _ = rows()
    scales = torch.rand(1000) + 0.5
    other, moved = codes.clone(), scales.clone()
    other[:off] += 1
    moved[:far] *= 1 + by
    found = agreement.compare((other, moved), (codes, scales))
    assert (found.fault(exact=False, softmax=True) is None) == holds
    assert found.fault(exact=False)


def test_packed_codes_are_counted_by_nibble():
    codes = torch.randint(-7, 7, (4, 64), dtype=torch.int8)
    other = codes.clone()
    other[1, 40] += 1  # a high nibble: 16 in the byte
    found = agreement.compare(pack_int4(other), pack_int4(codes))
    assert (found.codes, found.off, found.worst) == (256, 1, 1)


@pytest.mark.parametrize("other", [torch.zeros(3), torch.zeros(2, dtype=torch.bfloat16)])
def test_other_shapes_and_types_are_refused(other):
    with pytest.raises(ValueError, match="other shapes or types"):
        agreement.compare(torch.zeros(2), other)


def test_nothing_agrees_with_nothing():
    empty = torch.zeros(0, 4, dtype=torch.int8), torch.zeros(0, 1)
    assert agreement.compare(empty, empty).fault(exact=True) is None
