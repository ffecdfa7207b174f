"""Random operands of the ops, from the state that every test starts with, and one small call of every op."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.cases.operands import Operands
from qvit_kernels import ops
from qvit_kernels.reference import Quantized, Weight

random = Operands(torch.device("cpu"), seed=None)
codes, rows, transform, norm = random.codes, random.rows, random.transform, random.norm


def weight(n: int, k: int, *, groups: int = 1, packed: bool = False) -> Weight:
    """groups > 1: integer multipliers of either sign, which need 4-bit codes."""
    bits = 4 if packed or groups > 1 else 8
    return random.weight(n, k, bits=bits, group=k // groups if groups > 1 else 0, packed=packed)


def heads(batch: int, count: int, tokens: int, width: int) -> tuple[Quantized, ...]:
    """Q, K and V, all contiguous: not as `linear_qkv` leaves V."""
    return tuple(rows(batch, count, tokens, width) for _ in range(3))


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
    "linear_embed": lambda: ops.linear_embed(
        rows(2, 6, 32),
        weight(24, 32),
        torch.randn(24),
        torch.randn(2, 24),
        torch.randn(8, 24),
        torch.bfloat16,
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
