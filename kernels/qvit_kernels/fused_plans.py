"""What the `triton` backend does for an op: which launches, what they fill, and what it has no kernel for.

The functions have the names and the arguments of the registered ops, as in `composed`. They allocate results and launch
nothing: `fused` runs a plan, `routes` describes it, `benchmarks` compile and count it. Imports Triton.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qvit_kernels import attention_int8, gemm_plans, ln_quant, pixels
from qvit_kernels.launching import Launch


class Unsupported(NamedTuple):
    """What no kernel computes: an op, all that it is called with, and why not, as the end of a sentence."""

    op: str
    arguments: tuple[Any, ...]
    reason: str


class Plan(NamedTuple):
    """Launches in order, and the op's result, which they fill; or, in `rest`, whose result is the op's."""

    launches: tuple[Launch, ...] = ()
    result: Any = None
    rest: Unsupported | None = None


def plan_of(op: str, arguments: tuple[Any, ...]) -> Plan:
    """The plan of a registered op; arguments: all that it is called with, but the backend."""
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
    prefix: int = 0,
) -> Plan:
    """LayerNorm, block transform, quantization: one launch."""
    arguments = (x, weight, bias, eps, signs, block, bits, group, packed, static_scale, prefix)
    reason = ln_quant.supports(x, signs, block, group, packed)
    return _one("layernorm_quantize", reason, ln_quant.plan, arguments)


def quantize_rows(
    x: Tensor,
    signs: Tensor | None,
    block: int,
    bits: int,
    group: int,
    packed: bool,
    static_scale: Tensor | None = None,
    prefix: int = 0,
) -> Plan:
    """Block transform, quantization: one launch."""
    grid = (signs, block, bits, group, packed, static_scale, prefix)
    reason = ln_quant.supports(x, signs, block, group, packed)
    if reason:
        return Plan(rest=Unsupported("quantize_rows", (x, *grid), reason))
    launch, rows = ln_quant.plan(x, None, None, 0.0, *grid)
    return Plan((launch,), rows)


def quantize_pixels(images: Tensor, gain: Tensor, offset: Tensor, height: int, width: int) -> Plan:
    """Codes of the pixels, cut into patches: one launch."""
    reason = pixels.supports(images, height, width)
    return _one("quantize_pixels", reason, pixels.plan, (images, gain, offset, height, width))


def linear(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    multiplier: Tensor | None,
    bias: Tensor | None,
) -> Plan:
    """Matrix product with rescaling: one launch."""
    product = (x, x_scale, w, w_scale, multiplier, bias)
    return _one("linear", gemm_plans.supports(*product[:5]), gemm_plans.plan_linear, product)


def linear_embed(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    multiplier: Tensor | None,
    bias: Tensor | None,
    prefix: Tensor | None,
    positions: Tensor | None,
    dtype: torch.dtype,
) -> Plan:
    """Matrix product with rescaling of patches, between prefix tokens and position embeddings: one launch."""
    product = (x, x_scale, w, w_scale, multiplier, bias)
    before = 0 if prefix is None else prefix.shape[0]
    reason = gemm_plans.supports(*product[:5], more_rows=before * x.shape[0])
    places = (prefix, positions, dtype)
    return _one("linear_embed", reason, gemm_plans.plan_embed, (*product, *places))


def linear_residual(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    multiplier: Tensor | None,
    bias: Tensor | None,
    residual: Tensor,
) -> Plan:
    """Matrix product with rescaling, added to the residual stream: one launch."""
    product = (x, x_scale, w, w_scale, multiplier, bias)
    reason = gemm_plans.supports(*product[:5])
    return _one("linear_residual", reason, gemm_plans.plan_linear, (*product, residual))


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
    prefix: int = 0,
) -> Plan:
    """Matrix product, GELU, block transform, quantization: one launch where a tile holds whole groups, else two.

    The second of two may have no kernel, and then falls back alone.
    """
    product = (x, x_scale, w, w_scale, multiplier, bias)
    grid = (signs, block, bits, group, packed, static_scale, prefix)
    arguments = (*product, approximate, *grid)
    reason = gemm_plans.supports(*product[:5])
    static = static_scale is not None
    if reason or gemm_plans.quantizes_in_tile(
        w.shape[0], signs, block, group, packed, static=static
    ):
        return _one("linear_gelu_quantize", reason, gemm_plans.plan_gelu_quantize, arguments)
    launch, y = gemm_plans.plan_linear(*product, approximate=approximate)
    last = quantize_rows(y, *grid)
    return last._replace(launches=(launch, *last.launches))


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
) -> Plan:
    """Matrix product, split by head, each token of each head quantized: one launch."""
    product = (x, x_scale, w, w_scale, multiplier, bias)
    rest = (heads, bits, norm, eps, signs, block)
    reason = gemm_plans.supports(*product[:5]) or gemm_plans.supports_qkv(
        w.shape[0], heads, norm, signs, block
    )
    return _one("linear_qkv", reason, gemm_plans.plan_qkv, (*product, *rest))


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
    prefix: int = 0,
) -> Plan:
    """Softmax attention, its output quantized: one launch, two for a scale over more channels than a program holds."""
    arguments = (q, q_scale, k, k_scale, v, v_scale, bias, mask)
    grid = (softmax_scale, softmax_bits, bits, group, packed, static_scale, prefix)
    reason = attention_int8.supports(q, group, packed)
    if reason:
        return Plan(rest=Unsupported("attention", (*arguments, *grid), reason))
    return Plan(*attention_int8.plan(*arguments, *grid))


def _one(op: str, reason: str | None, plan: Callable[..., Any], arguments: tuple[Any, ...]) -> Plan:
    """The one launch that `plan` makes of an op's arguments; none, where there is a reason not to."""
    if reason:
        return Plan(rest=Unsupported(op, arguments, reason))
    launch, result = plan(*arguments)
    return Plan((launch,), result)


_OPS: dict[str, Callable[..., Plan]] = {
    "attention": attention,
    "layernorm_quantize": layernorm_quantize,
    "linear": linear,
    "linear_embed": linear_embed,
    "linear_gelu_quantize": linear_gelu_quantize,
    "linear_qkv": linear_qkv,
    "linear_residual": linear_residual,
    "quantize_pixels": quantize_pixels,
    "quantize_rows": quantize_rows,
}
