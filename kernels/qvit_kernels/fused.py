"""The `triton` backend: every op as one launch of a fused kernel, two where a row is wider than a tile.

The arguments are those of the registered ops, as in `composed`, which computes what the kernels do not support: loudly,
once for each reason.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qvit_kernels import attention_int8, composed, gemm_plans, ln_quant
from qvit_kernels.composed import quantize_pixels  # a thousandth of a model: torch's own kernels do
from qvit_kernels.launching import Launch
from qvit_kernels.notices import warn_once

__all__ = [
    "attention",
    "layernorm_quantize",
    "linear",
    "linear_gelu_quantize",
    "linear_qkv",
    "linear_residual",
    "quantize_pixels",
    "quantize_rows",
]


def layernorm_quantize(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    signs: Tensor | None,
    block: int,
    bits: int,
    group: int,
    packed: bool,
    static_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """LayerNorm, block transform, quantization: one launch."""
    reason = ln_quant.supports(x, signs, block, group, packed)
    rest = (weight, bias, eps, signs, block, bits, group, packed, static_scale)
    return _fuse("layernorm_quantize", reason, ln_quant.plan, x, *rest)


def quantize_rows(
    x: Tensor,
    signs: Tensor | None,
    block: int,
    bits: int,
    group: int,
    packed: bool,
    static_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Block transform, quantization: one launch."""
    reason = ln_quant.supports(x, signs, block, group, packed)
    grid = (signs, block, bits, group, packed, static_scale)
    if reason:
        return _compose("quantize_rows", reason, x, *grid)
    launch, rows = ln_quant.plan(x, None, None, 0.0, *grid)
    _run(x, launch)
    return rows


def linear(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    multiplier: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Matrix product with rescaling: one launch."""
    product = (x, x_scale, w, w_scale, multiplier, bias)
    return _fuse("linear", gemm_plans.supports(*product[:5]), gemm_plans.plan_linear, *product)


def linear_residual(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    multiplier: Tensor | None,
    bias: Tensor | None,
    residual: Tensor,
) -> Tensor:
    """Matrix product with rescaling, added to the residual stream: one launch."""
    product = (x, x_scale, w, w_scale, multiplier, bias)
    reason = gemm_plans.supports(*product[:5])
    return _fuse("linear_residual", reason, gemm_plans.plan_linear, *product, residual)


def linear_gelu_quantize(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    multiplier: Tensor | None,
    bias: Tensor | None,
    approximate: str,
    signs: Tensor | None,
    block: int,
    bits: int,
    group: int,
    packed: bool,
    static_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Matrix product, GELU, block transform, quantization: one launch where a tile holds whole groups, else two."""
    product = (x, x_scale, w, w_scale, multiplier, bias)
    grid = (signs, block, bits, group, packed, static_scale)
    reason = gemm_plans.supports(*product[:5])
    if reason:
        return _compose("linear_gelu_quantize", reason, *product, approximate, *grid)
    static = static_scale is not None
    if gemm_plans.quantizes_in_tile(w.shape[0], signs, block, group, packed, static=static):
        launch, rows = gemm_plans.plan_gelu_quantize(*product, approximate, *grid)
        _run(x, launch)
        return rows
    launch, y = gemm_plans.plan_linear(*product, approximate=approximate)
    _run(x, launch)
    return quantize_rows(y, *grid)


def linear_qkv(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    multiplier: Tensor | None,
    bias: Tensor | None,
    heads: int,
    bits: int,
    norm: list[Tensor],
    eps: float,
    signs: Tensor | None,
    block: int,
) -> tuple[Tensor, ...]:
    """Matrix product, split by head, each token of each head quantized: one launch."""
    product = (x, x_scale, w, w_scale, multiplier, bias)
    rest = (heads, bits, norm, eps, signs, block)
    reason = gemm_plans.supports(*product[:5]) or gemm_plans.supports_qkv(
        w.shape[0], heads, norm, signs, block
    )
    return _fuse("linear_qkv", reason, gemm_plans.plan_qkv, *product, *rest)


def attention(
    q: Tensor,
    q_scale: Tensor,
    k: Tensor,
    k_scale: Tensor,
    v: Tensor,
    v_scale: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    softmax_scale: float,
    softmax_bits: int,
    bits: int,
    group: int,
    packed: bool,
    static_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention, its output quantized: one launch, two for a scale over more channels than a program holds."""
    arguments = (q, q_scale, k, k_scale, v, v_scale, bias, mask)
    grid = (softmax_scale, softmax_bits, bits, group, packed, static_scale)
    reason = attention_int8.supports(q, group, packed)
    if reason:
        return _compose("attention", reason, *arguments, *grid)
    launches, rows = attention_int8.plan(*arguments, *grid)
    _run(q, *launches)
    return rows


def _fuse(name: str, reason: str | None, plan: Callable[..., Any], *arguments: Any) -> Any:
    """The result of the one launch that `plan` makes of an op's arguments; composed, where there is a reason not to."""
    if reason:
        return _compose(name, reason, *arguments)
    launch, result = plan(*arguments)
    _run(arguments[0], launch)
    return result


def _run(x: Tensor, *launches: Launch) -> None:
    """Launch on the device of x, which need not be the current one."""
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        with torch.cuda.device(x.device):
            return _run(x, *launches)
    for launch in launches:
        launch.run()
    return None


def _compose(name: str, reason: str, *arguments: Any) -> Any:
    """The reference's result, with a warning the first time for each op and reason."""
    warn_once(
        f"{name} has no kernel for these shapes ({reason}): the slow 'reference' backend computes it"
    )
    return getattr(composed, name)(*arguments)
