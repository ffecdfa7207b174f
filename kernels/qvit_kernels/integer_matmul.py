"""Exact products of int8 matrices on a CPU: oneDNN's where it can be trusted, fp32 in chunks where
not, or where that is faster.

`torch._int_mm` runs on the CPU's int8 dot product (VNNI) at 9 times the speed of an fp32 product.
Without that instruction oneDNN adds pairs of products in 16 bits and saturates, silently: all 127,
K = 128 gives 16,320 for 2,064,512, or multiplies value by value. So the first use tests it.
"""

import time
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from qvit_kernels.packing import unpack_int4
from qvit_kernels.reference import Weight

# torch has no public name for it.
_int_mm = torch._int_mm  # pyright: ignore[reportPrivateImportUsage]

# |-128 * -128| * 1024 = 2^24: the longest sum of int8 products that fp32 holds exactly.
_FLOAT32_CHUNK = 1024

# Rows and columns of the product by which both ways are timed: 0.1 ms where int8 is fast, 30 ms where it is not.
_PROBE = 192


def multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a @ b, exactly. a: int8 [M, K]; b: int8 [K, N], any strides; out: int32 [M, N],
    contiguous."""
    if int8_matmul_pays():
        return _int_mm(a, b, out=out)
    return _multiply_in_chunks(a, b, out)


@lru_cache(maxsize=1)
def int8_matmul_is_exact() -> bool:
    """True if `torch._int_mm` returns exact sums on this machine's CPU; tested once, at the first
    use.

    The operands are what saturation would show on: extremes of both signs and random codes, in
    shapes that take oneDNN's matrix and vector paths.
    """
    generator = torch.Generator().manual_seed(0)
    for m, k, n in ((1, 64, 32), (17, 128, 32), (64, 97, 48)):
        a = torch.randint(-128, 128, (m, k), dtype=torch.int8, generator=generator)
        b = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=generator)
        pairs = [(a, b)] + [
            (torch.full_like(a, p), torch.full_like(b, q))
            for p, q in ((127, 127), (-128, 127), (127, -128), (-128, -128))
        ]
        if not all(_is_exact(left, right) for left, right in pairs):
            return False
    return True


@lru_cache(maxsize=1)
def int8_matmul_pays() -> bool:
    """True if `torch._int_mm` is exact on this machine's CPU, and faster than fp32 products; tested once, at the first
    use.

    Builds of torch differ in what they do without VNNI: one saturates, one is exact and multiplies value by value, so
    that a ViT-Tiny with groups took 4 seconds an image on a Zen 3 core, where fp32 products take a tenth.
    """
    if not int8_matmul_is_exact():
        return False
    a = torch.ones(_PROBE, _PROBE, dtype=torch.int8)
    out = torch.empty(_PROBE, _PROBE, dtype=torch.int32)
    int8 = min(_seconds(lambda: _int_mm(a, a, out=out)) for _ in range(3))
    return int8 < min(_seconds(lambda: _multiply_in_chunks(a, a, out)) for _ in range(3))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _is_exact(a: Tensor, b: Tensor) -> bool:
    expected = a.double() @ b.double().t()
    try:
        by_rows = _int_mm(a, b.t())
        by_columns = _int_mm(a, b.t().contiguous())
    except RuntimeError:  # a build of torch without it
        return False
    return torch.equal(by_rows.double(), expected) and torch.equal(by_columns.double(), expected)


def _multiply_in_chunks(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    out.zero_()
    for start in range(0, a.shape[1], _FLOAT32_CHUNK):
        columns = slice(start, start + _FLOAT32_CHUNK)
        out += (a[:, columns].float() @ b[columns].float()).to(torch.int32)
    return out


class _Int8Weights:
    """int8 forms of stored weights, kept as long as the stored codes live and are not written to."""

    def __init__(self) -> None:
        self._held: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def get(self, w: Tensor, k: int, multiplier: Tensor | None) -> Tensor:
        if w.is_inference() or (multiplier is not None and multiplier.is_inference()):
            # An inference tensor counts no writes, so a stale copy could not be noticed.
            return integers_of(w, k, multiplier)
        state = (k, *(None if t is None else (t._version, t.data_ptr()) for t in (w, multiplier)))
        held = self._held.get(w)
        if held is None or held[0] != state:
            held = (state, integers_of(w, k, multiplier))
            self._held[w] = held
        return held[1]


def integers_of(w: Tensor, k: int, multiplier: Tensor | None) -> Tensor:
    """codes * multiplier as int8 [N, k], computed anew."""
    codes = unpack_int4(w, k) if w.dtype == torch.uint8 else w
    return Weight(codes, codes, multiplier).integers()


_int8_weights = _Int8Weights()


def int8_weight(w: Tensor, k: int, multiplier: Tensor | None) -> Tensor:
    """codes * multiplier as int8 [N, k]: the stored tensor itself, or computed once and remembered.

    Unpacking costs a tenth of the product at batch 1. The copy goes with the stored tensor and is made again after an
    in-place write to it or the multipliers (of which torch counts all but those through `.data`).
    """
    plain = w.dtype == torch.int8 and multiplier is None
    return w if plain else _int8_weights.get(w, k, multiplier)
