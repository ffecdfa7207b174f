"""Heads: their split and attention at many token counts and widths, with bias and mask; and pixels."""

from collections.abc import Iterator

import torch

from benchmarks.cases.kernels import Call
from benchmarks.cases.operands import Operands
from benchmarks.checks.checking import Check, Make, input_of, weight_of
from qvit_kernels import ops


def _qkv(
    batch: int, tokens: int, heads: int, d: int, kind: str, bits: int, *, norm: bool = False
) -> Make:
    def make(operands: Operands) -> Call:
        k = heads * d if heads * d % 64 == 0 else 192
        x = input_of(operands, (batch, tokens, k), kind)
        weight, bias = weight_of(operands, 3 * heads * d, k, kind), operands.floats(3 * heads * d)
        qk = (operands.norm(d), operands.transform(d, d & -d)) if norm else (None, None)
        return lambda backend: ops.linear_qkv(x, weight, bias, heads, bits, *qk, backend=backend)

    return make


def head_checks() -> Iterator[Check]:
    """Of linear_qkv."""
    op = "linear_qkv"
    yield Check(f"{op}/1 image of 17, 2 heads of 32 w8a8", _qkv(1, 17, 2, 32, "w8a8", 8), dry=True)
    for batch, tokens, heads, d, kind, bits, norm in (
        (2, 197, 3, 64, "w4a4 group 16", 4, False),
        (2, 197, 6, 64, "w4a8 group 16", 8, False),
        (1, 201, 2, 80, "w8a8", 8, False),
        (3, 17, 2, 96, "w8a8", 8, True),
        (1, 257, 2, 128, "w4a8 group 64", 8, False),
        (2, 63, 4, 32, "w8a8", 8, True),
        (1, 1, 3, 64, "w4a8", 4, False),
        (0, 197, 3, 64, "w8a8", 8, False),
    ):
        what = f"{batch} images of {tokens}, {heads} heads of {d} {kind}, {bits} bits"
        call = _qkv(batch, tokens, heads, d, kind, bits, norm=norm)
        yield Check(f"{op}/{what}{' norm' if norm else ''}", call, exact=not norm)


def _attending(
    batch: int, heads: int, tokens: int, d: int, *, softmax_bits: int = 8, bits: int = 8,
    group: int = 0, packed: bool = False, extra: str = "",
) -> Make:  # fmt: skip
    def make(operands: Operands) -> Call:
        q, k, v = operands.heads(batch, heads, tokens, d, 4 if softmax_bits == 4 else 8)
        square = (tokens, tokens)
        bias = operands.floats(1, heads, *square) if "bias" in extra else None
        mask = operands.mask(batch, 1, *square) if "mask" in extra else None
        if mask is not None and tokens > 1:
            mask[:, :, 1] = False  # a row that sees nothing
        if extra == "alike":
            for part, code in ((q, 127), (k, 127), (v, -127)):
                part.codes.fill_(code)
        return lambda backend: ops.attention(
            q, k, v, d**-0.5, softmax_bits, bits, group,
            bias=bias, mask=mask, packed=packed, backend=backend,
        )  # fmt: skip

    return make


def attention_checks() -> Iterator[Check]:
    """Of attention."""
    op = "attention"
    yield Check(f"{op}/t17 d32", _attending(1, 2, 17, 32, group=32), exact=False, dry=True)
    four_bits = _attending(2, 6, 197, 64, softmax_bits=4, bits=4, group=128, packed=True)
    yield Check(f"{op}/t197 d64 4 bits packed", four_bits, exact=False)
    yield Check(f"{op}/t197 d64 all alike", _attending(1, 3, 197, 64, extra="alike"), exact=False)
    for extra in ("bias", "mask", "bias and mask"):
        for t in (49, 197, 577):
            call = _attending(2, 3, t, 64, group=64, extra=extra)
            yield Check(f"{op}/t{t} d64 {extra}", call, exact=False)
    tokens = (1, 2, 16, 31, 32, 33, 64, 65, 127, 129, 196, 197, 201, 257, 289, 577, 785, 1025, 1370)
    for i, t in enumerate(tokens):
        d = (64, 32, 80, 96, 128)[i % 5]
        yield Check(f"{op}/t{t} d{d}", _attending(2, 2, t, d, group=d * (i % 2)), exact=False)
    for d in (32, 64, 80, 96, 128):
        yield Check(f"{op}/t201 d{d} whole rows", _attending(1, 3, 201, d), exact=False)
    yield Check(f"{op}/no image", _attending(0, 3, 17, 64), exact=False)


def pixel_checks() -> Iterator[Check]:
    """Of quantize_pixels."""
    for batch, height, width, patch, dry in (
        (1, 16, 24, 8, True), (2, 224, 224, 16, False), (1, 230, 225, 16, False), (3, 64, 64, 8, False),
    ):  # fmt: skip
        call = _patches(batch, height, width, patch)
        name = f"quantize_pixels/{batch} of {height}x{width} by {patch}"
        yield Check(name, call, dry=dry)


def _patches(batch: int, height: int, width: int, patch: int) -> Make:
    def make(operands: Operands) -> Call:
        images = operands.floats(batch, 3, height, width) * 2
        gain = torch.tensor([58.4, 57.1, 57.4], device=operands.device)
        offset = torch.tensor([-4.3, -11.7, -24.5], device=operands.device)
        return lambda backend: ops.quantize_pixels(
            images, gain, offset, (patch, patch), backend=backend
        )

    return make
