"""The plainest low-bit model, in simulation: one static range a tensor, from its minimum to its maximum.

Weights and inputs of every Linear and convolution, and both products of attention, take the same bits, on symmetric
grids, as integers without zero points want them. Batch norms are folded first. Whatever a method is worth shows
against this.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from qvit.quant.quantizers import Quantizer
from qvit.quant.schemes import Granularity, Mode, Scheme


def quantize_naively(model: nn.Module, sample: Tensor, *, bits: int) -> nn.Module:
    """A low-bit copy of a timm ViT or ResNet.

    Args:
        model: In eval mode, left as it is.
        sample: Images [B, 3, height, width] that the ranges of all but weights are taken from.
        bits: Of everything.
    """
    scheme = Scheme(bits=bits, granularity=Granularity.TENSOR, mode=Mode.STATIC)
    quantized = deepcopy(model)
    fold_norms(quantized)
    quantizers: dict[str, Quantizer] = {}

    def observe(name: str, x: Tensor) -> Tensor:
        quantizers[name] = Quantizer(scheme)
        quantizers[name].calibrate(x)
        return x

    # The ranges are those of the float model: weights change only after all of them are known.
    hooks = _intercept(quantized, observe)
    with torch.no_grad():
        quantized(sample)
    for hook in hooks:
        hook.remove()
    for layer in quantized.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            own = Quantizer(scheme)
            own.calibrate(layer.weight)
            layer.weight.data = own(layer.weight).detach()
    _intercept(quantized, lambda name, x: quantizers[name](x).detach())
    return quantized


@torch.no_grad()
def fold_norms(model: nn.Module) -> None:
    """Put every batch norm of a timm ResNet into the convolution that is registered before it."""
    before = ("", nn.Module())
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            place, convolution = before
            assert isinstance(convolution, nn.Conv2d)
            model.set_submodule(place, fuse_conv_bn_eval(convolution, module))
            model.set_submodule(name, nn.Identity())
        before = (name, module) if isinstance(module, nn.Conv2d) else before


def _intercept(model: nn.Module, change: Callable[[str, Tensor], Tensor]) -> list[Any]:
    """Pass every operand of a product through `change`, with a name of its own, until the hooks are removed."""
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            hooks.append(module.register_forward_pre_hook(_on_input(name, change)))
        if name.endswith("attn"):
            attention: Any = module
            attention.fused_attn = False  # or the softmax could not be reached
            hooks.append(attention.qkv.register_forward_hook(_on_thirds(name, change)))
            hooks.append(
                attention.attn_drop.register_forward_pre_hook(_on_input(f"{name}.p", change))
            )
    return hooks


def _on_input(name: str, change: Callable[[str, Tensor], Tensor]) -> Any:
    return lambda _, arguments: (change(name, arguments[0]), *arguments[1:])


def _on_thirds(name: str, change: Callable[[str, Tensor], Tensor]) -> Any:
    """Q, K and V, side by side in the last axis."""
    return lambda _, arguments, output: torch.cat(
        [change(f"{name}.{kind}", x) for kind, x in zip("qkv", output.chunk(3, -1), strict=True)],
        -1,
    )
