"""Matrix products of every kind of weight: ragged, empty, with the largest sums, strided; and their epilogues."""

from collections.abc import Iterator

import torch

from benchmarks.cases.kernels import Call
from benchmarks.cases.operands import Operands
from benchmarks.checks.checking import FLOATS, ROWS, WEIGHTS, Check, Make, input_of, weight_of
from qvit_kernels import ops
from qvit_kernels.reference import Quantized, Weight


def _product(m: int, n: int, k: int, kind: str, *, groups: int = 1, static: bool = False) -> Make:
    def make(operands: Operands) -> Call:
        x, weight = input_of(operands, (m, k), kind, groups), weight_of(operands, n, k, kind)
        if static:
            x = Quantized(x.codes, operands.scales(1, groups))
        bias = operands.floats(n) if n % 2 == 0 else None
        return lambda backend: ops.linear(x, weight, bias, backend=backend)

    return make


def _extreme(m: int, n: int, k: int, x_code: int, w_code: int) -> Make:
    """All codes alike: the largest sums there are."""

    def make(operands: Operands) -> Call:
        x = Quantized(
            torch.full((m, k), x_code, dtype=torch.int8, device=operands.device),
            operands.scales(m, 1),
        )
        codes = torch.full((n, k), w_code, dtype=torch.int8, device=operands.device)
        weight = Weight(codes, operands.scales(n), None)
        return lambda backend: ops.linear(x, weight, None, backend=backend)

    return make


def _strided(operands: Operands) -> Call:
    """Every operand a view: columns of wider rows, rows of a taller matrix, a transposed one."""
    x, scale = operands.codes(63, 2 * 192)[:, ::2], operands.scales(2 * 63, 1)[::2]
    weight = Weight(operands.codes(192, 96).T, operands.scales(2 * 96)[::2], None)
    bias = operands.floats(2 * 96)[::2]
    return lambda backend: ops.linear(Quantized(x, scale), weight, bias, backend=backend)


def product_checks() -> Iterator[Check]:
    """Of linear."""
    op = "linear"
    yield Check(f"{op}/m17 n24 k64 w4a4 group 32", _product(17, 24, 64, "w4a4 group 32"), dry=True)
    yield Check(f"{op}/m17 n40 k72 w8a8", _product(17, 40, 72, "w8a8"), dry=True)
    for x_code, w_code in ((-127, -127), (127, -127), (127, 127), (-128, 127)):
        name = f"{op}/m63 n96 k3072 all {x_code} times {w_code}"
        yield Check(name, _extreme(63, 96, 3072, x_code, w_code))
    yield Check(f"{op}/m63 n96 k192 strided", _strided)
    for kind in WEIGHTS:
        packed = kind.startswith("w4a4")
        shapes = ((24, 64), (65, 192), (96, 320), (1000, 384), (40, 768), (192, 192), (384, 1536))
        odd = ((24, 32), (65, 100), (96, 200), (1000, 384), (7, 33), (192, 192), (384, 1536))
        grouped = "group" in kind
        for m, (n, k) in zip(ROWS, shapes if packed or grouped else odd, strict=True):
            yield Check(f"{op}/m{m} n{n} k{k} {kind}", _product(m, n, k, kind))
    for kind, groups in (("w8a8", 3), ("w4a8 group 32", 6), ("w4a4 group 32", 3)):
        call = _product(197, 96, 384, kind, groups=groups)
        yield Check(f"{op}/m197 n96 k384 {kind}, {groups} x groups", call)
    # rows of weights that are no multiple of 32 bytes, with multipliers
    yield Check(f"{op}/m394 n96 k96 w4a8 group 32", _product(394, 96, 96, "w4a8 group 32"))
    yield Check(f"{op}/m63 n96 k192 w8a8 static", _product(63, 96, 192, "w8a8", static=True))
    groups_of_48 = _product(17, 24, 96, "w8a8", groups=2)
    yield Check(f"{op}/m17 n24 k96 w8a8, 2 x groups of 48", groups_of_48, fused=False)


def _residual(m: int, n: int, k: int, kind: str, dtype: torch.dtype, groups: int = 1) -> Make:
    def make(operands: Operands) -> Call:
        x, weight = input_of(operands, (m, k), kind, groups), weight_of(operands, n, k, kind)
        bias, residual = operands.floats(n), operands.floats(m, n, dtype=dtype)
        return lambda backend: ops.linear_residual(x, weight, bias, residual, backend=backend)

    return make


def _embed(
    batch: int, patches: int, n: int, k: int, kind: str, prefix: int, dtype: torch.dtype
) -> Make:
    def make(operands: Operands) -> Call:
        x, weight = (
            input_of(operands, (batch, patches, k), kind, 1),
            weight_of(operands, n, k, kind),
        )
        x = Quantized(x.codes, operands.scales(1, 1))
        bias, positions = operands.floats(n), operands.floats(prefix + patches, n)
        first = operands.floats(prefix, n) if prefix else None
        return lambda backend: ops.linear_embed(
            x, weight, bias, first, positions, dtype, backend=backend
        )

    return make


def embed_checks() -> Iterator[Check]:
    """Of linear_embed."""
    op = "linear_embed"
    for i, (batch, patches, n, k, kind, prefix) in enumerate((
        (2, 4, 64, 192, "w8a8", 1), (1, 196, 384, 768, "w8a8", 1), (64, 196, 192, 768, "w4a8 group 32", 1),
        (3, 256, 96, 588, "w8a8", 5), (2, 49, 96, 96, "w4a8", 0), (0, 196, 384, 768, "w8a8", 2),
    )):  # fmt: skip
        call = _embed(batch, patches, n, k, kind, prefix, FLOATS[i % 3])
        name = f"{op}/{prefix} and {patches} tokens of {batch} n{n} k{k} {kind}"
        yield Check(name, call, dry=i == 0)


def residual_checks() -> Iterator[Check]:
    """Of linear_residual."""
    op = "linear_residual"
    first = _residual(17, 64, 64, "w8a8", torch.float32)
    yield Check(f"{op}/m17 n64 k64 w8a8", first, dry=True)
    kinds = ("w8a8", "w4a8 group 32", "w4a4 group 16")
    for i, m in enumerate(ROWS):
        kind, dtype = kinds[i % 3], FLOATS[(i // 2) % 3]
        name = f"{op}/m{m} n192 k384 {kind} {str(dtype)[6:]}"
        yield Check(name, _residual(m, 192, 384, kind, dtype, groups=(1, 3, 6)[i % 3]))
    for m, kind in (
        (197, "w8a8"),
        (197, "w4a8 group 16"),
        (63, "w4a8"),
    ):  # programs share these sums
        name = f"{op}/m{m} n384 k1536 {kind}"
        yield Check(name, _residual(m, 384, 1536, kind, torch.float32))


def _gelu(
    m: int, n: int, k: int, kind: str, approximate: str, block: int, bits: int, group: int,
    packed: bool = False, static: bool = False,
) -> Make:  # fmt: skip
    def make(operands: Operands) -> Call:
        x, weight = input_of(operands, (m, k), kind), weight_of(operands, n, k, kind)
        bias, turn = operands.floats(n), operands.transform(n, block)
        given = operands.scales(1, n // group if group else 1) if static else None
        return lambda backend: ops.linear_gelu_quantize(
            x, weight, bias, approximate, turn, bits, group,
            packed=packed, static_scale=given, backend=backend,
        )  # fmt: skip

    return make


def gelu_checks() -> Iterator[Check]:
    """Of linear_gelu_quantize."""
    op = "linear_gelu_quantize"
    for i, (m, n, k, kind, approximate, block, bits, group, packed) in enumerate((
        (17, 128, 64, "w4a8 group 32", "none", 32, 8, 128, False),
        (17, 256, 64, "w8a8", "none", 0, 8, 0, False),
        (394, 768, 192, "w4a4 group 16", "none", 32, 4, 128, True),
        (197, 1536, 384, "w8a8", "tanh", 0, 8, 0, False),
        (63, 384, 100, "w4a8", "tanh", 64, 8, 128, False),
        (16, 512, 128, "w4a4 group 64", "none", 64, 4, 64, True),
        (1, 768, 192, "w4a8 group 16", "none", 32, 4, 128, False),
        (0, 128, 64, "w8a8", "none", 0, 8, 128, False),
    )):  # fmt: skip
        name = f"{op}/m{m} n{n} k{k} {kind} {approximate} block {block}, {bits} bits group {group}"
        call = _gelu(m, n, k, kind, approximate, block, bits, group, packed)
        yield Check(name + " packed" * packed, call, exact=False, dry=i == 0)
    for m, n, kind, block, group in ((63, 384, "w8a8", 0, 0), (197, 1536, "w4a8 group 32", 32, 48)):
        name = f"{op}/m{m} n{n} k192 {kind} block {block}, 8 bits static group {group}"
        call = _gelu(m, n, 192, kind, "none", block, 8, group, static=True)
        yield Check(name, call, exact=False)
