"""Canaries: a write beside a tensor is seen, one within it is not."""

import pytest
import torch

from benchmarks.checks.guarded_memory import guarded_memory, is_unbroken, surround


@pytest.mark.parametrize("place", [-1, 12])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float32, torch.bfloat16])
def test_a_write_beside_is_counted(place, dtype):
    with guarded_memory() as guards:
        good, bad = torch.empty((3, 4), dtype=dtype), torch.empty((3, 4), dtype=dtype)
        good.fill_(1)
        start = bad.storage_offset() + place
        bad.as_strided((1,), (1,), start).fill_(1)
        assert guards.count_broken() == 1


@pytest.mark.parametrize("around", [0x7F, 0xA5])
def test_a_copy_keeps_its_strides_and_has_canaries(around):
    whole = torch.arange(24, dtype=torch.float32).view(4, 6)
    for tensor in (whole, whole.t(), whole[:, ::2], whole[1:], whole[:0]):
        copy = surround(tensor, around)
        assert torch.equal(copy, tensor)
        assert copy.stride() == tensor.stride()
        assert is_unbroken(copy, around)
    copy = surround(whole, around)
    copy.as_strided((1,), (1,), copy.storage_offset() + 24).fill_(0)
    assert not is_unbroken(copy, around)


def test_memory_is_poisoned_whoever_allocates():
    like = torch.zeros(2, 3)
    with guarded_memory() as guards:
        made = [
            torch.empty(2, 3),
            torch.empty_like(like),
            like.new_empty((2, 3)),
            like.new_empty(6),
        ]
        codes = like.new_empty((5,), dtype=torch.int8)
    assert all(t.isnan().all() for t in made)
    assert codes.tolist() == [0x55] * 5
    assert guards.count_broken() == 0


def test_shapes_dtypes_and_alignment_are_those_asked_for():
    with guarded_memory() as guards:
        for shape in ((), (0, 4), (7,), (3, 5, 2)):
            for dtype in (torch.bool, torch.int8, torch.float16, torch.int64):
                made = torch.empty(shape, dtype=dtype)
                assert (tuple(made.shape), made.dtype) == (shape, dtype)
                assert made.is_contiguous()
                assert made.storage_offset() * made.element_size() % 4096 == 0
        assert guards.count_broken() == 0


def test_the_allocators_come_back():
    before = torch.empty, torch.empty_like, torch.Tensor.new_empty
    with guarded_memory():
        assert torch.empty is not before[0]
    assert (torch.empty, torch.empty_like, torch.Tensor.new_empty) == before
