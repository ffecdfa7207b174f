"""What `fused` would launch for an op's arguments, without launching it; or why it would not.

The functions follow those of the same names in `fused`: the same `supports`, the same plans. Imports Triton.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from qvit_kernels import attention_int8, gemm_plans, ln_quant
from qvit_kernels.launching import Launch

Launches = tuple[Launch, ...]


def launches_of(op: str, arguments: tuple[Any, ...]) -> Launches | str:
    """The launches in order, none where torch's own kernels are the intended ones; a str is the reason for a fallback.

    op, arguments: a registered op and all that it is called with, but the backend.
    """
    return _OPS[op](*arguments)


def describe(launch: Launch) -> tuple[str, str]:
    """The name of its kernel, and how it is cut: "128x128x128, 8 warps" (rows, columns, depth of a program)."""
    constants = launch.arguments
    if "BM" in constants:
        cut = "x".join(str(constants[name]) for name in ("BM", "BN", "BK"))
        splits = constants.get("SPLITS", 1)
        cut += f" by {splits} programs" if splits > 1 else ""
    else:
        cut = f"{constants.get('BLOCK_M') or constants['ROWS']} rows"
    return getattr(launch.kernel, "fn", launch.kernel).__name__, f"{cut}, {launch.warps} warps"


def _quantize_pixels(*arguments: Any) -> Launches:
    return ()


def _layernorm_quantize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    signs: Tensor | None,
    block: int,
    bits: int,
    group: int,
    packed: bool,
    static_scale: Tensor | None,
) -> Launches | str:
    reason = ln_quant.supports(x, signs, block, group, packed)
    rest = (weight, bias, eps, signs, block, bits, group, packed, static_scale)
    return reason or (ln_quant.plan(x, *rest)[0],)


def _quantize_rows(x: Tensor, *grid: Any) -> Launches | str:
    return _layernorm_quantize(x, None, None, 0.0, *grid)


def _linear(*arguments: Any) -> Launches | str:
    """With a residual as the last argument, or without one."""
    return gemm_plans.supports(*arguments[:5]) or (gemm_plans.plan_linear(*arguments)[0],)


def _linear_gelu_quantize(*arguments: Any) -> Launches | str:
    product, approximate, grid = arguments[:6], arguments[6], arguments[7:]
    signs, block, _, group, packed, static_scale = grid
    reason = gemm_plans.supports(*product[:5])
    if reason:
        return reason
    rows, static = product[2].shape[0], static_scale is not None
    if gemm_plans.quantizes_in_tile(rows, signs, block, group, packed, static=static):
        return (gemm_plans.plan_gelu_quantize(*arguments)[0],)
    launch, y = gemm_plans.plan_linear(*product, approximate=approximate)
    last = _quantize_rows(y, *grid)
    return last if isinstance(last, str) else (launch, *last)


def _linear_qkv(*arguments: Any) -> Launches | str:
    product, (heads, _, norm, _, signs, block) = arguments[:6], arguments[6:]
    reason = gemm_plans.supports(*product[:5]) or gemm_plans.supports_qkv(
        product[2].shape[0], heads, norm, signs, block
    )
    return reason or (gemm_plans.plan_qkv(*arguments)[0],)


def _attention(*arguments: Any) -> Launches | str:
    group, packed = arguments[11:13]
    reason = attention_int8.supports(arguments[0], group, packed)
    return reason or attention_int8.plan(*arguments)[0]


_OPS: dict[str, Callable[..., Launches | str]] = {
    "attention": _attention,
    "layernorm_quantize": _layernorm_quantize,
    "linear": _linear,
    "linear_gelu_quantize": _linear_gelu_quantize,
    "linear_qkv": _linear_qkv,
    "linear_residual": _linear,
    "quantize_pixels": _quantize_pixels,
    "quantize_rows": _quantize_rows,
}
