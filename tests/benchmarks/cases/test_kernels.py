"""The registry of cases: bytes and operations against hand-made counts and against the tensors themselves."""

import pytest
import torch
from torch import Tensor

from benchmarks.cases import kernels as cases

KERNELS = cases.KERNELS


def test_bytes_of_fc1_by_hand():
    """DeiT-S, one image, W8A8: no transform, groups of 128 in what it writes."""
    case = cases.Case("fc1", "deit_s", 1, "W8A8")
    x = 197 * 384 + 197 * 4
    weight = 1536 * 384 + 1536 * 4 + 1536 * 4
    written = 197 * 1536 + 197 * 12 * 4  # groups of 128
    assert case.bytes == x + weight + written == 990_596
    assert case.operations == 2 * 197 * 1536 * 384


def test_bytes_of_qkv_by_hand():
    """DeiT-T, one image, W4A4: packed codes, a multiplier for 16 weights, Q, K and V with a scale a head."""
    case = cases.Case("qkv", "deit_t", 1, "W4A4")
    x = 197 * 192 // 2 + 197 * 4
    weight = 576 * 192 // 2 + 576 * 192 // 16 + 576 * 8
    written = 3 * 197 * (192 + 3 * 4)
    assert case.bytes == x + weight + written == 207_080


def test_operations_of_attention_by_hand():
    case = cases.Case("attention", "deit_b", 8, "W8A8")
    assert case.operations == 2 * (2 * 8 * 12 * 197 * 197 * 64)


def test_a_block_is_seven_launches():
    parts = cases.block_cases("deit_s", 64, "W4A8")
    assert len(parts) == 7
    products = sum(p.operations for p in parts if p.kernel != "attention")
    assert products == 2 * 64 * 197 * 12 * 384 * 384


def tensors(value):
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple):
        return [t for part in value for t in tensors(part)]
    return []


@pytest.mark.parametrize("scheme", list(cases.SCHEMES))
@pytest.mark.parametrize("kernel", KERNELS)
def test_bytes_are_those_of_the_operands_and_results(kernel, scheme, monkeypatch):
    """Every operand once, every result once; the padding between rows of V is neither."""
    moved = []

    class Counting:
        def __getattr__(self, name):
            op = getattr(cases_ops, name)

            def call(*arguments, **options):
                result = op(*arguments, **options)
                moved.extend(t.numel() * t.itemsize for t in tensors((*arguments, result)))
                return result

            return call

    cases_ops = cases.ops
    monkeypatch.setattr(cases, "ops", Counting())
    case = cases.Case(kernel, "tiny", 2, scheme)
    case.make(torch.device("cpu"))("reference")
    assert case.bytes == sum(moved)


def test_the_same_seed_makes_the_same_operands():
    case = cases.Case("proj", "tiny", 1, "W4A8")
    first, again, other = (case.make(torch.device("cpu"), seed)("cpu") for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_names_are_unique():
    names = [case.name for case in cases.all_cases()]
    assert len(names) == len(set(names)) == 3 * 4 * 7 * 3
