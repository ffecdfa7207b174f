"""Rows to quantize, with and without a LayerNorm: ragged, tied, saturated, without variance, strided."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.cases.kernels import Call
from benchmarks.cases.operands import Operands
from benchmarks.checks.checking import FLOATS, ROWS, Check, Make
from qvit_kernels import ops
from qvit_kernels.reference import steps_of


def _special_rows(make: Operands, m: int, k: int, bits: int, what: str) -> Tensor:
    """fp32 [m, k]. "ties": a step of exactly 1 and values that end in .5, saturation at both ends included."""
    if what == "zero":
        x = make.floats(m, k)
        return x * (torch.arange(m, device=make.device) % 2)[:, None]
    if what == "huge":
        return make.floats(m, k) * 1e30
    if what == "tiny":
        return make.floats(m, k) * 1e-38
    most = steps_of(bits)
    x = (make.codes(m, k, bits=bits).float() + 0.5).clamp(-most, most)
    x[:, :2] = torch.tensor([most, -most], device=make.device)
    return x


def _quantizing(
    m: int, k: int, bits: int = 8, group: int = 0, block: int = 0, packed: bool = False,
    dtype: torch.dtype = torch.float32, what: str = "random", strided: bool = False,
    static: bool = False,
) -> Make:  # fmt: skip
    def make(operands: Operands) -> Call:
        if what == "random":
            x = operands.floats(m, 2 * k if strided else k, dtype=dtype)
            x = x[:, ::2] if strided else x
        else:
            x = _special_rows(operands, m, k, bits, what).to(dtype)
        turn = operands.transform(k, block)
        given = operands.scales(1, k // group if group else 1) if static else None
        return lambda backend: ops.quantize_rows(
            x, turn, bits, group, packed=packed, static_scale=given, backend=backend
        )

    return make


def row_checks() -> Iterator[Check]:
    """Of quantize_rows."""
    op = "quantize_rows"
    yield Check(f"{op}/m17 k96 ties 8 bits", _quantizing(17, 96, what="ties"), dry=True)
    yield Check(f"{op}/m17 k96 ties 4 bits", _quantizing(17, 96, 4, what="ties"))
    for what in ("zero", "huge", "tiny"):
        yield Check(f"{op}/m16 k192 {what}", _quantizing(16, 192, what=what))
    yield Check(f"{op}/m17 k192 every other column", _quantizing(17, 192, strided=True))
    for m, k in zip(ROWS, (64, 1000, 192, 100, 384, 768, 1280), strict=True):
        yield Check(f"{op}/m{m} k{k}", _quantizing(m, k))
    for m, k, bits, group, block in (
        (63, 384, 4, 128, 64), (17, 192, 4, 64, 32), (197, 768, 8, 128, 64), (16, 3072, 4, 0, 32),
    ):  # fmt: skip
        name = f"{op}/m{m} k{k} {bits} bits group {group} block {block}"
        yield Check(name, _quantizing(m, k, bits, group, block))
        if bits == 4:
            yield Check(f"{name} packed", _quantizing(m, k, bits, group, block, packed=True))
    for group in (0, 128):
        static = _quantizing(63, 384, group=group, block=64, static=True)
        yield Check(f"{op}/m63 k384 static group {group}", static)
    yield Check(f"{op}/m17 k98 block 7", _quantizing(17, 98, block=7), fused=False)


def _norming(
    m: int, k: int, bits: int = 8, block: int = 0, packed: bool = False,
    dtype: torch.dtype = torch.float32, *, constant: bool = False,
) -> Make:  # fmt: skip
    def make(operands: Operands) -> Call:
        x = operands.floats(m, k, dtype=dtype)
        if constant:  # no variance: eps decides
            x = torch.full_like(x, 3.0)
        weight, bias = operands.floats(k) * 0.1 + 1, operands.floats(k)
        turn = operands.transform(k, block)
        return lambda backend: ops.layernorm_quantize(
            x, weight, bias, 1e-6, turn, bits, packed=packed, backend=backend
        )

    return make


def norm_checks() -> Iterator[Check]:
    """Of layernorm_quantize."""
    op = "layernorm_quantize"
    yield Check(f"{op}/m17 k64 W8", _norming(17, 64), exact=False, dry=True)
    yield Check(f"{op}/m63 k384 constant rows", _norming(63, 384, constant=True), exact=False)
    for m, k, dtype in zip(
        ROWS, (64, 1000, 192, 384, 768, 384, 1280), (*FLOATS, *FLOATS, torch.float32), strict=True
    ):
        name = f"{op}/m{m} k{k} {str(dtype)[6:]}"
        yield Check(name, _norming(m, k, dtype=dtype), exact=False)
    for m, k, packed in ((63, 192, False), (197, 384, True), (17, 768, True)):
        name = f"{op}/m{m} k{k} 4 bits block 64{' packed' if packed else ''}"
        yield Check(name, _norming(m, k, 4, 64, packed), exact=False)
