"""Exact int8 products: the self-test, the fallback, the unpacked forms of packed weights."""

import copy
import gc
import os
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qvit_kernels import integer_matmul, ops
from qvit_kernels.ops import Weight, use_backend
from qvit_kernels.packing import pack_int4, unpack_int4
from tests.kernels.operands import codes, rows, weight


def product(a: Tensor, b: Tensor) -> Tensor:
    return a.to(torch.int64) @ b.to(torch.int64)


@pytest.mark.parametrize("k", [1, 128, 1025, 2500])
def test_fallback_of_chunks_is_exact(k):
    out = torch.empty(5, 7, dtype=torch.int32)
    for a, b in (
        (torch.full((5, k), -128, dtype=torch.int8), torch.full((k, 7), -128, dtype=torch.int8)),
        # Near the extremes but uneven: sums of powers of two stay exact far beyond 2^24.
        (torch.full((5, k), 127, dtype=torch.int8), 127 - codes(7, k).t().remainder(2)),
    ):
        got = integer_matmul._multiply_in_chunks(a, b, out)
        assert got is out
        assert torch.equal(got.to(torch.int64), product(a, b))


def test_self_test_notices_saturation(monkeypatch):
    """What a CPU without VNNI returns: pairs of products summed in 16 bits."""

    def saturating(a, b):
        a, b = a.int(), b.int()
        if a.shape[1] % 2:
            a, b = torch.nn.functional.pad(a, (0, 1)), torch.nn.functional.pad(b, (0, 0, 0, 1))
        pairs = a[:, 0::2, None] * b[None, 0::2] + a[:, 1::2, None] * b[None, 1::2]
        return pairs.clamp(-(2**15), 2**15 - 1).sum(1).int()

    assert integer_matmul.int8_matmul_is_exact.__wrapped__() in (True, False)
    monkeypatch.setattr(integer_matmul, "_int_mm", lambda a, b: a.int() @ b.int())
    assert integer_matmul.int8_matmul_is_exact.__wrapped__() is True
    monkeypatch.setattr(integer_matmul, "_int_mm", saturating)
    assert integer_matmul.int8_matmul_is_exact.__wrapped__() is False


def test_an_exact_product_that_is_slow_is_not_taken(monkeypatch):
    """What another build of torch has without VNNI: sums value by value."""
    pays = integer_matmul.int8_matmul_pays.__wrapped__
    monkeypatch.setattr(integer_matmul, "int8_matmul_is_exact", lambda: True)

    def slow(a, b, out):
        time.sleep(0.05)
        return out

    monkeypatch.setattr(integer_matmul, "_int_mm", slow)
    assert pays() is False
    monkeypatch.setattr(integer_matmul, "_int_mm", lambda a, b, out: out)
    assert pays() is True
    monkeypatch.setattr(integer_matmul, "int8_matmul_is_exact", lambda: False)
    assert pays() is False


WITHOUT_VNNI = """
import torch
from qvit_kernels import cpu, ops
from tests.kernels.operands import codes, heads, rows, tensors, weight
print(cpu.int8_matmul_is_exact())
torch.manual_seed(0)
x, w = rows(197, 1536), weight(64, 1536)
x.codes[0], w.codes[0] = 127, 127
q, k, v = heads(1, 2, 197, 64)
for call in (lambda: ops.linear(x, w, None), lambda: ops.attention(q, k, v, 0.125, 8, 8)):
    with ops.use_backend("reference"):
        expected = tensors(call())
    with ops.use_backend("cpu"):
        got = tensors(call())
    print(all(torch.equal(a, b) for a, b in zip(got, expected)))
"""


CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(
    not CPUINFO.exists() or "avx512_vnni" not in CPUINFO.read_text(),
    reason="without AVX512-VNNI there is nothing to switch off",
)
def test_without_vnni_the_fallback_computes_the_same():
    environment = os.environ | {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    out = subprocess.run(
        [sys.executable, "-c", WITHOUT_VNNI],
        env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert out.stdout.split() == ["False", "True", "True"]


@pytest.fixture
def unpackings(monkeypatch):
    """Counts how often a packed weight is unpacked."""
    counted = []

    def counting(packed, k):
        counted.append(packed.shape)
        return unpack_int4(packed, k)

    monkeypatch.setattr(integer_matmul, "unpack_int4", counting)
    return counted


def run(x, w):
    with use_backend("cpu"):
        return ops.linear(x, w, None)


def test_packed_weight_is_unpacked_once(unpackings):
    x, w = rows(3, 32), weight(16, 32, packed=True)
    first = run(x, w)
    assert torch.equal(run(x, w), first)
    assert len(unpackings) == 1


def test_a_written_weight_is_unpacked_again(unpackings):
    x, w = rows(3, 32), weight(16, 32, packed=True)
    run(x, w)
    other = weight(16, 32, packed=True)
    w.codes.copy_(other.codes)
    assert torch.equal(run(x, w), run(x, Weight(other.codes, w.scale)))
    w.codes.data = pack_int4(codes(16, 32, bits=4))  # counts no write, but moves
    with use_backend("reference"):
        expected = ops.linear(x, w, None)
    assert torch.equal(run(x, w), expected)


def test_an_inference_tensor_never_goes_stale():
    x = rows(3, 32)
    with torch.inference_mode():
        w = weight(16, 32, packed=True)
        run(x, w)
        w.codes.zero_()
        assert run(x, w).abs().max() == 0


def test_the_unpacked_form_goes_with_the_weight():
    x, w = rows(3, 32), weight(16, 32, packed=True)
    run(x, w)
    kept = weakref.ref(integer_matmul.int8_weight(w.codes, 32, None))
    assert kept() is not None
    copied = copy.deepcopy(w)
    assert torch.equal(run(x, copied), run(x, w))
    del w
    gc.collect()
    assert kept() is None


def test_two_widths_of_one_packed_weight():
    """Eight bytes are 15 or 16 columns."""
    packed = pack_int4(codes(4, 16, bits=4))
    for k in (16, 15, 16):
        w = Weight(packed, torch.ones(4))
        x = rows(3, k)
        with use_backend("reference"):
            expected = ops.linear(x, w, None)
        assert torch.equal(run(x, w), expected)
