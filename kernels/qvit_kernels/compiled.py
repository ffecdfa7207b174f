"""The ops of the `cpu` backend: the compiled path where it is loaded and made for the arguments, else `cpu`'s.

The compiled path takes fp32 rows in multiples of 16, transforms of a power of two, heads of up to 256 channels;
what it does not take is computed as without it.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from qvit_kernels import compiled_program as program
from qvit_kernels import composed, cpu, reference
from qvit_kernels.compiled_library import loaded
from qvit_kernels.compiled_program import ACTIVATIONS, Panels, Program
from qvit_kernels.integer_matmul import integers_of
from qvit_kernels.packing import pack_int4, unpack_int4
from qvit_kernels.storage import empty_rows, empty_values

_CPU = torch.device("cpu")  # said everywhere: torch may be set to another default device

KERNEL = "vnni"  # what `routes` calls it

_FITS: dict[str, Callable[..., bool]] = {}


def takes(op: str, arguments: tuple[Any, ...]) -> bool:
    """Whether the compiled path computes a registered op; arguments: all that it is called with, but the backend."""
    return loaded() is not None and _FITS[op](*arguments)


def _where(fits: Callable[..., bool]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An op that computes what fits, and leaves the rest to the op of that name in `cpu`."""

    def choosing(op: Callable[..., Any]) -> Callable[..., Any]:
        name = op.__name__
        _FITS[name] = fits

        @functools.wraps(op)
        def run(*arguments: Any) -> Any:
            return op(*arguments) if takes(name, arguments) else getattr(cpu, name)(*arguments)

        return run

    return choosing


def _fits_norm(x: Tensor, w: Any, b: Any, eps: Any, signs: Any, *grid: Any) -> bool:
    return _fits_rows(x, signs, *grid)


def _fits_rows(x: Tensor, signs: Any, block: int, bits: int, group: int, *_: Any) -> bool:
    return x.dtype == torch.float32 and _fits_width(x.shape[-1], group, block)


def _fits_product(x: Tensor, x_scale: Tensor, *_: Any) -> bool:
    groups = x_scale.shape[-1]
    return groups == 1 or _columns(x) // groups % 4 == 0


def _fits_residual(x: Tensor, x_scale: Tensor, *rest: Any) -> bool:
    return _fits_product(x, x_scale) and rest[-1].dtype == torch.float32


def _fits_gelu(x: Tensor, x_scale: Tensor, w: Tensor, *rest: Any) -> bool:
    block, _, group = rest[5:8]
    return _fits_product(x, x_scale) and _fits_width(w.shape[0], group, block)


def _fits_qkv(x: Tensor, x_scale: Tensor, w: Tensor, *rest: Any) -> bool:
    heads, block = rest[3], rest[-1]
    return _fits_product(x, x_scale) and _fits_heads(w.shape[0] // (3 * heads), block)


def _fits_attention(q: Tensor, *rest: Any) -> bool:
    bias, mask, group = rest[5], rest[6], rest[10]
    heads, width = q.shape[1], q.shape[3]
    plain = bias is None and mask is None and q.numel() > 0
    return plain and _fits_heads(width, 0) and _fits_width(heads * width, group, 0)


def _fits_width(width: int, group: int, block: int) -> bool:
    return width % 16 == 0 and group % 16 == 0 and block & (block - 1) == 0


def _fits_heads(width: int, block: int) -> bool:
    return width % 16 == 0 and width <= 256 and block & (block - 1) == 0


def _columns(x: Tensor) -> int:
    return x.shape[-1] if x.dtype == torch.int8 else 2 * x.shape[-1]


@_where(lambda images, *_: images.dtype == torch.float32)
def quantize_pixels(
    images: Tensor, gain: Tensor, offset: Tensor, height: int, width: int
) -> Tensor:
    """Codes of the pixels."""
    batch, channels, rows, columns = images.shape
    count = (rows // height) * (columns // width)
    codes = torch.empty((batch, count, channels * height * width), dtype=torch.int8, device=_CPU)
    Program(
        [
            pixels_step(
                images.contiguous(), gain.contiguous(), offset.contiguous(), (height, width), codes
            )
        ]
    ).run()
    return codes


def pixels_step(
    images: Tensor, gain: Tensor, offset: Tensor, patch: tuple[int, int], codes: Tensor
) -> program.Members:
    """Images fp32 [B, C, H, W] to codes int8 [B, patches, C * height * width]."""
    batch, channels, rows, columns = images.shape
    return {
        "kind": "pixels", "rows": batch * (rows // patch[0]), "x": images,
        "norm_weight": gain, "norm_bias": offset, "codes": codes,
        "channels": channels, "image_height": rows, "image_width": columns,
        "patch_height": patch[0], "patch_width": patch[1], "patch_columns": columns // patch[1],
    }  # fmt: skip


@_where(_fits_norm)
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
) -> tuple[Tensor, Tensor]:
    """LayerNorm, block transform, quantization."""
    norm = {"norm_weight": weight.contiguous(), "norm_bias": bias.contiguous(), "eps": eps}
    return _quantize(x, norm, signs, block, bits, group, packed, static_scale, prefix)


@_where(_fits_rows)
def quantize_rows(
    x: Tensor,
    signs: Tensor | None,
    block: int,
    bits: int,
    group: int,
    packed: bool,
    static_scale: Tensor | None = None,
    prefix: int = 0,
) -> tuple[Tensor, Tensor]:
    """Block transform, quantization."""
    return _quantize(x, {}, signs, block, bits, group, packed, static_scale, prefix)


def _quantize(
    x: Tensor,
    norm: program.Members,
    signs: Tensor | None,
    block: int,
    bits: int,
    group: int,
    packed: bool,
    given: Tensor | None,
    prefix: int,
) -> tuple[Tensor, Tensor]:
    *lead, width = x.shape
    codes, scale = empty_rows(lead, width, group, False, _CPU, static=given is not None)
    if codes.numel():
        Program([{
            "kind": "rows", "rows": codes.numel() // width, "k": width, "x": x.contiguous(),
            "codes": codes, "scales": scale, **norm,
            **program.transform(_contiguous(signs, block)),
            **program.grid(bits, width, group, given), **program.prefix(prefix, codes),
        }]).run()  # fmt: skip
    return pack_int4(codes) if packed else codes, scale


@_where(_fits_product)
def linear(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    multiplier: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Matrix product with rescaling."""
    out = torch.empty((*x.shape[:-1], w.shape[0]), dtype=torch.float32, device=_CPU)
    _multiply(x, x_scale, w, w_scale, multiplier, bias, {"out": out})
    return out


linear_embed = composed.embedding_of(linear)
_FITS["linear_embed"] = _fits_product


@_where(_fits_residual)
def linear_residual(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    multiplier: Tensor | None,
    bias: Tensor | None,
    residual: Tensor,
) -> Tensor:
    """Matrix product with rescaling, added to the residual stream."""
    out = torch.empty(residual.shape, dtype=torch.float32, device=_CPU)
    rest = {"out": out, "residual": residual.contiguous()}
    _multiply(x, x_scale, w, w_scale, multiplier, bias, rest)
    return out


@_where(_fits_gelu)
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
) -> tuple[Tensor, Tensor]:
    """Matrix product, GELU, block transform, quantization."""
    width = w.shape[0]
    codes, scale = empty_rows(
        x.shape[:-1], width, group, False, _CPU, static=static_scale is not None
    )
    rest = {
        "activation": ACTIVATIONS[approximate], "codes": codes, "scales": scale,
        **program.transform(_contiguous(signs, block)),
        **program.grid(bits, width, group, static_scale), **program.prefix(prefix, codes),
    }  # fmt: skip
    _multiply(x, x_scale, w, w_scale, multiplier, bias, rest)
    return pack_int4(codes) if packed else codes, scale


@_where(_fits_qkv)
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Matrix product, split by head, each token of each head quantized."""
    width = w.shape[0] // (3 * heads)
    batch, tokens, _ = x.shape
    shape = (batch, heads, tokens)
    q, k = (torch.empty((*shape, width), dtype=torch.int8, device=_CPU) for _ in range(2))
    scales = [torch.empty((*shape, 1), dtype=torch.float32, device=_CPU) for _ in range(3)]
    v = empty_values((*shape, width), _CPU)
    rest = {
        "kind": "qkv", "heads": heads, "tokens": tokens, "width": width,
        **program.grid(bits, width, 0, None), **program.values(v), "q": q, "key": k,
        **dict(zip(("q_scale", "k_scale", "v_scale"), scales, strict=True)),
    }  # fmt: skip
    if norm:
        names = ("norm_weight", "norm_bias", "k_weight", "k_bias")
        rest |= dict(zip(names, [t.contiguous() for t in norm], strict=True)) | {"eps": eps}
        rest |= program.transform(_contiguous(signs, block))
    _multiply(x, x_scale, w, w_scale, multiplier, bias, rest)
    return q, scales[0], k, scales[1], v, scales[2]


@_where(_fits_attention)
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
) -> tuple[Tensor, Tensor]:
    """Softmax attention, its output quantized."""
    batch, heads, tokens, width = q.shape
    out = torch.empty((batch, tokens, heads * width), dtype=torch.float32, device=_CPU)
    codes, scale = empty_rows(
        out.shape[:-1], heads * width, group, False, _CPU, static=static_scale is not None
    )
    parts = {"q": q, "key": k, "q_scale": q_scale, "k_scale": k_scale, "v_scale": v_scale}
    attend = {
        "kind": "attention", "rows": batch, "heads": heads, "tokens": tokens, "width": width, "out": out,
        **{name: part.contiguous() for name, part in parts.items()}, **program.values(v),
        **softmax(softmax_scale, softmax_bits),
    }  # fmt: skip
    finish = {
        "kind": "rows", "together": 1, "rows": batch * tokens, "k": heads * width, "x": out,
        "codes": codes, "scales": scale, **program.grid(bits, heads * width, group, static_scale),
        **program.prefix(prefix, codes),
    }  # fmt: skip
    Program([attend, finish]).run()
    return pack_int4(codes) if packed else codes, scale


def softmax(scale: float, bits: int) -> program.Members:
    """The members of an attention step that say how its softmax is computed."""
    return {
        "softmax_scale": scale * reference.LOG2_E,
        "softmax_max": reference.softmax_qmax_of(bits),
    }


def _multiply(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    multiplier: Tensor | None,
    bias: Tensor | None,
    rest: program.Members,
) -> None:
    rows = math.prod(x.shape[:-1])
    if not rows:
        return
    if x.dtype == torch.uint8:
        x = unpack_int4(x, _columns(x))
    panels = panels_of(w, x.shape[-1], multiplier, x_scale.shape[-1])
    Program([{
        "kind": "linear", "rows": rows, **program.operand(x.contiguous(), x_scale.contiguous(), rows),
        **program.weight(panels, w_scale.contiguous(), None if bias is None else bias.contiguous()), **rest,
    }]).run()  # fmt: skip


class _HeldPanels:
    """Panels of stored weights, kept as long as the stored codes live and are not written to."""

    def __init__(self) -> None:
        self._held: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def get(self, w: Tensor, k: int, multiplier: Tensor | None, groups: int) -> Panels:
        if w.is_inference() or (multiplier is not None and multiplier.is_inference()):
            # An inference tensor counts no writes, so a stale copy could not be noticed.
            return program.pack_weight(integers_of(w, k, multiplier), groups)
        versions = [None if t is None else (t._version, t.data_ptr()) for t in (w, multiplier)]
        state = (k, groups, *versions)
        held = self._held.get(w)
        if held is None or held[0] != state:
            held = (state, program.pack_weight(integers_of(w, k, multiplier), groups))
            self._held[w] = held
        return held[1]


_held_panels = _HeldPanels()


def panels_of(w: Tensor, k: int, multiplier: Tensor | None, groups: int) -> Panels:
    """A stored weight as products read it: packed once, and again after a write to it (all but those through `.data`,
    which torch does not count). k: columns; groups: scales that a row of activations has.
    """
    return _held_panels.get(w, k, multiplier, groups)


def _contiguous(signs: Tensor | None, block: int) -> reference.BlockTransform | None:
    return composed.transform_of(None if signs is None else signs.contiguous(), block)
