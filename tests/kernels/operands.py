"""Random operands of the ops, and one small call of every op."""

from collections.abc import Callable

import torch
from torch import Tensor

from qvit_kernels import ops
from qvit_kernels.packing import pack_int4
from qvit_kernels.reference import (
    BlockTransform,
    QKNorm,
    Quantized,
    Weight,
    code_range,
    largest_multiplier,
)


def codes(*shape: int, bits: int = 8) -> Tensor:
    low, high = code_range(bits)
    return torch.randint(low, high + 1, shape, dtype=torch.int8)


def rows(*shape: int, groups: int = 1, bits: int = 8) -> Quantized:
    return Quantized(codes(*shape, bits=bits), torch.rand(*shape[:-1], groups) * 0.02 + 0.01)


def weight(n: int, k: int, *, groups: int = 1, packed: bool = False) -> Weight:
    """groups > 1: integer multipliers of either sign, which need 4-bit codes."""
    bits = 4 if packed or groups > 1 else 8
    values = codes(n, k, bits=bits)
    multiplier = None
    if groups > 1:
        sign = torch.randint(0, 2, (n, groups)) * 2 - 1
        multiplier = (torch.randint(1, largest_multiplier(bits) + 1, (n, groups)) * sign).to(
            torch.int8
        )
    return Weight(
        pack_int4(values) if packed else values, torch.rand(n) * 0.002 + 0.001, multiplier
    )


def transform(width: int, block: int) -> BlockTransform:
    return BlockTransform(torch.randint(0, 2, (width,)).float() * 2 - 1, block)


def heads(batch: int, count: int, tokens: int, width: int) -> tuple[Quantized, ...]:
    return tuple(rows(batch, count, tokens, width) for _ in range(3))


def norm(width: int) -> QKNorm:
    return QKNorm(
        torch.rand(width) + 0.5,
        torch.randn(width),
        torch.rand(width) + 0.5,
        torch.randn(width),
        1e-6,
    )


def _qkv() -> object:
    return ops.linear_qkv(
        rows(2, 5, 32), weight(96, 32), torch.randn(96), 2, 8, norm(16), transform(16, 16)
    )


def _mlp() -> object:
    return ops.linear_gelu_quantize(
        rows(2, 5, 32), weight(64, 32), torch.randn(64), "none", transform(64, 16), 4, 32
    )


CALLS: dict[str, Callable[[], object]] = {
    "layernorm_quantize": lambda: ops.layernorm_quantize(
        torch.randn(2, 5, 48), torch.rand(48), torch.randn(48), 1e-6, transform(48, 16), 8, 16
    ),
    "quantize_rows": lambda: ops.quantize_rows(torch.randn(2, 5, 48), None, 4),
    "quantize_pixels": lambda: ops.quantize_pixels(
        torch.randn(2, 3, 8, 12), torch.full((3,), 58.0), torch.full((3,), -4.0), (4, 6)
    ),
    "linear": lambda: ops.linear(
        rows(2, 5, 32), weight(24, 32, groups=2, packed=True), torch.randn(24)
    ),
    "linear_residual": lambda: ops.linear_residual(
        rows(2, 5, 32, groups=2), weight(24, 32), None, torch.randn(2, 5, 24).bfloat16()
    ),
    "linear_gelu_quantize": _mlp,
    "linear_qkv": _qkv,
    "attention": lambda: ops.attention(*heads(2, 3, 7, 16), 16**-0.5, 8, 8, 16),
}

# The same with a scale that is given, for a tensor or for groups.
STATIC_CALLS: dict[str, Callable[[], object]] = {
    "layernorm_quantize": lambda: ops.layernorm_quantize(
        torch.randn(2, 5, 48), torch.rand(48), torch.randn(48), 1e-6, transform(48, 16), 8,
        static_scale=torch.full((1, 1), 0.01),
    ),
    "quantize_rows": lambda: ops.quantize_rows(
        torch.randn(2, 5, 48), None, 4, 12, static_scale=torch.rand(1, 4) + 0.1
    ),
    "linear_gelu_quantize": lambda: ops.linear_gelu_quantize(
        rows(2, 5, 32), weight(64, 32), torch.randn(64), "none", transform(64, 16), 4, 32,
        static_scale=torch.rand(1, 2) + 0.1,
    ),
    "attention": lambda: ops.attention(
        *heads(2, 3, 7, 16), 16**-0.5, 8, 8, static_scale=torch.full((1, 1), 0.01)
    ),
}  # fmt: skip


def tensors(result: object) -> list[Tensor]:
    """All tensors of a result, in order."""
    if isinstance(result, Tensor):
        return [result]
    assert isinstance(result, tuple)
    return [tensor for part in result for tensor in tensors(part)]
