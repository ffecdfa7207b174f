"""The torch ops of namespace `qvit`: schemas, shapes without data, and the way to a backend.

`torch.library.Library` define/impl instead of `custom_op`: 3.8 us against 12 us a call, and a ViT
makes 90. One implementation for every device, below autograd: it asks `backends` who computes and
calls the function of the same name there. Every schema ends in `backend`, which a model that was
given one passes along: a traced graph then keeps it. The schemas are functional; no output aliases an input.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from qvit_kernels import backends, compiled, composed, inductor
from qvit_kernels.storage import empty_rows, empty_values

_X = "Tensor x, Tensor x_scale, Tensor w, Tensor w_scale, Tensor? multiplier, Tensor? bias"
_GRID = "int bits, int group, bool packed, Tensor? static_scale, int prefix"
_ROWS = f"Tensor? signs, int block, {_GRID}"

SCHEMAS = {
    "layernorm_quantize": f"(Tensor x, Tensor weight, Tensor bias, float eps, {_ROWS})"
    " -> (Tensor, Tensor)",
    "quantize_rows": f"(Tensor x, {_ROWS}) -> (Tensor, Tensor)",
    "quantize_pixels": "(Tensor images, Tensor gain, Tensor offset, int height, int width)"
    " -> Tensor",
    "linear": f"({_X}) -> Tensor",
    "linear_embed": f"({_X}, Tensor? prefix, Tensor? positions, ScalarType dtype) -> Tensor",
    "linear_residual": f"({_X}, Tensor residual) -> Tensor",
    "linear_gelu_quantize": f"({_X}, str approximate, {_ROWS}) -> (Tensor, Tensor)",
    "linear_qkv": f"({_X}, int heads, int bits, Tensor[] norm, float eps, Tensor? signs, int block)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "attention": "(Tensor q, Tensor q_scale, Tensor k, Tensor k_scale, Tensor v, Tensor v_scale,"
    " Tensor? bias, Tensor? mask,"
    f" float softmax_scale, int softmax_bits, {_GRID}) -> (Tensor, Tensor)",
}


def _fused(name: str) -> Callable[..., object]:
    """The op of `fused`, which is imported at its first call: Triton takes a second, and may not be installed."""

    def run(*arguments: object) -> object:
        return getattr(import_module("qvit_kernels.fused"), name)(*arguments)

    return run


# op -> backend -> function
IMPLEMENTATIONS: dict[str, dict[str, Callable[..., object]]] = {
    name: {
        "cpu": getattr(compiled, name),
        "reference": getattr(composed, name),
        "triton": _fused(name),
    }
    for name in SCHEMAS
}


def _dispatching(name: str) -> Callable[..., object]:
    implementations = IMPLEMENTATIONS[name]

    def run(first: Tensor, *rest: object, backend: str | None = None) -> object:
        device = first.device
        implementation = implementations[backends.resolve(device, backend)]
        if not torch.is_grad_enabled() and not torch.is_autocast_enabled(device.type):
            return implementation(first, *rest)
        # Integers have no gradient, and a traced scale would forbid the writes in place. Autocast
        # would turn the fp32 products of integers into bf16 ones, which are not exact.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return implementation(first, *rest)

    return run


def _rows(lead: tuple[int, ...], width: int, x: Tensor, rest: Any) -> tuple[Tensor, Tensor]:
    """rest: the arguments of an op, of which the last four say how rows are quantized."""
    group, packed, static_scale, _ = rest[-4:]
    return empty_rows(lead, width, group, packed, x.device, static=static_scale is not None)


def _fake_layernorm_quantize(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _rows(x.shape[:-1], x.shape[-1], x, rest)


def _fake_quantize_rows(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _rows(x.shape[:-1], x.shape[-1], x, rest)


def _fake_quantize_pixels(
    images: Tensor, gain: Tensor, offset: Tensor, height: int, width: int
) -> Tensor:
    batch, channels, rows, columns = images.shape
    tokens = (rows // height) * (columns // width)
    return images.new_empty((batch, tokens, channels * height * width), dtype=torch.int8)


def _fake_linear(x: Tensor, x_scale: Tensor, w: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], w.shape[0]), dtype=torch.float32)


def _fake_linear_embed(x: Tensor, x_scale: Tensor, w: Tensor, *rest: Any) -> Tensor:
    prefix, _, dtype = rest[-3:]
    batch, patches, _ = x.shape
    before = 0 if prefix is None else prefix.shape[0]
    return x.new_empty((batch, before + patches, w.shape[0]), dtype=dtype)


def _fake_linear_residual(x: Tensor, *rest: Any) -> Tensor:
    residual: Tensor = rest[-1]
    return residual.new_empty(residual.shape)


def _fake_linear_gelu_quantize(
    x: Tensor, x_scale: Tensor, w: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    return _rows(x.shape[:-1], w.shape[0], x, rest)


def _fake_linear_qkv(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    multiplier: Tensor | None,
    bias: Tensor | None,
    heads: int,
    *rest: Any,
) -> tuple[Tensor, ...]:
    batch, tokens, _ = x.shape
    shape = (batch, heads, tokens)
    width = w.shape[0] // (3 * heads)
    scales = [x.new_empty((*shape, 1), dtype=torch.float32) for _ in range(3)]
    q, k = (x.new_empty((*shape, width), dtype=torch.int8) for _ in range(2))
    values = empty_values((*shape, width), x.device)
    return q, scales[0], k, scales[1], values, scales[2]


def _fake_attention(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    batch, heads, tokens, width = q.shape
    return _rows((batch, tokens), heads * width, q, rest)


def _ignoring_backend(fake: Callable[..., object]) -> Callable[..., object]:
    def run(*arguments: Any, backend: str | None = None) -> object:
        inductor.announce(f"qvit::{name}" for name in SCHEMAS)
        return fake(*arguments)

    return run


_library = torch.library.Library("qvit", "DEF")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema.replace(") ->", ", *, str? backend=None) ->"))
    _library.impl(_name, _dispatching(_name), "CompositeExplicitAutograd")
    torch.library.register_fake(
        f"qvit::{_name}", _ignoring_backend(globals()[f"_fake_{_name}"]), lib=_library
    )
