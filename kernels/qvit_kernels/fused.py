"""The `triton` backend: every op as one launch of a fused kernel, two where a row is wider than a tile.

The arguments are those of the registered ops, as in `composed`, which computes what the kernels do not support: loudly,
once for each reason. `fused_plans` decides which is which.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qvit_kernels import composed, fused_plans
from qvit_kernels.fused_plans import Plan
from qvit_kernels.launching import Launch
from qvit_kernels.notices import warn_once

__all__ = [
    "attention",
    "layernorm_quantize",
    "linear",
    "linear_embed",
    "linear_gelu_quantize",
    "linear_qkv",
    "linear_residual",
    "quantize_pixels",
    "quantize_rows",
]


def _running(plan_op: Callable[..., Plan]) -> Callable[..., Any]:
    """The op whose plan that function makes."""

    def run(*arguments: Any) -> Any:
        launches, result, rest = plan_op(*arguments)
        _run(arguments[0], *launches)
        return result if rest is None else _compose(rest.op, rest.reason, *rest.arguments)

    return run


attention = _running(fused_plans.attention)
layernorm_quantize = _running(fused_plans.layernorm_quantize)
linear = _running(fused_plans.linear)
linear_embed = _running(fused_plans.linear_embed)
linear_gelu_quantize = _running(fused_plans.linear_gelu_quantize)
linear_qkv = _running(fused_plans.linear_qkv)
linear_residual = _running(fused_plans.linear_residual)
quantize_pixels = _running(fused_plans.quantize_pixels)
quantize_rows = _running(fused_plans.quantize_rows)


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
