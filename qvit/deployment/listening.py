"""One real pass of a model, with every operation of qvit_kernels in it noted: nothing about it is guessed."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from qvit.deployment.explanation import Layer, MachineRates
from qvit.models.dense import IntegerDense
from qvit.models.integer import Integer
from qvit.models.vit import Attention, Mlp, ViT
from qvit_kernels.reference import Quantized
from qvit_kernels.routes import find_route


@torch.no_grad()
def listen(
    vit: ViT, images: Tensor, backend: str | None, rates: MachineRates | None
) -> tuple[Layer, ...]:
    """The operations of an integer ViT that is given images [B, C, H, W], in order.

    backend: None goes by the current choice.
    """
    weights = {n: m.scheme.weight for n, m in vit.named_modules() if isinstance(m, IntegerDense)}
    layers: list[Layer] = []

    def note(layer: str, op: str, arguments: tuple[Any, ...], result: object) -> None:
        bits = weights[layer].mean_bits if op.startswith("linear") else None
        layers.append(_describe(layer, bits, op, arguments, result, backend, rates))

    hear_ops(vit, images, backend, note)
    return tuple(layers)


@torch.no_grad()
def hear_ops(
    vit: ViT,
    images: Tensor,
    backend: str | None,
    note: Callable[[str, str, tuple[Any, ...], object], None],
) -> None:
    """Call `note` with layer, name, arguments and result of every operation of a pass; on meta tensors none is done."""
    run = _Named(vit, backend)
    with _Listening(lambda op, arguments, result: note(run.layer, op, arguments, result)):
        vit(images, run)


@torch.no_grad()
def time_layers(vit: ViT, images: Tensor, backend: str | None) -> dict[str, float]:
    """Seconds of the operations of every layer of `listen`, by its name, in one pass that takes them one by one.

    On a CUDA device between events before and after the launches, so that the device's own time is seen wherever it is
    longer than the host takes for them.
    """
    run = _Named(vit, backend)
    on_device = images.device.type == "cuda"
    marks: list[tuple[str, Any, Any]] = []

    def mark(begun: Any, ended: Any) -> None:
        marks.append((run.layer, begun, ended))

    with _Listening(around=mark, read=_read_device if on_device else time.perf_counter):
        vit(images, run)
    if on_device:
        torch.cuda.synchronize(images.device)
    seconds: dict[str, float] = {}
    for name, begun, ended in marks:
        taken = begun.elapsed_time(ended) / 1000 if on_device else ended - begun
        seconds[name] = seconds.get(name, 0.0) + taken
    return seconds


def _read_device() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class _Listening(TorchDispatchMode):
    """Calls `around` with what `read` says before and after every op of qvit, then `note` with the op's name, arguments
    and result.
    """

    def __init__(
        self,
        note: Callable[[str, tuple[Any, ...], object], None] | None = None,
        around: Callable[[Any, Any], None] | None = None,
        read: Callable[[], Any] = time.perf_counter,
    ) -> None:
        super().__init__()
        self._note, self._around, self._read = note, around, read

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> object:
        if func.namespace != "qvit":
            return func(*args, **(kwargs or {}))
        begun = self._read()
        result = func(*args, **(kwargs or {}))
        if self._around is not None:
            self._around(begun, self._read())
        if self._note is not None:
            self._note(func.name().partition("::")[2], args, result)
        return result


class _Named(Integer):
    """The integer execution, which knows at every step for which layer it is taken."""

    def __init__(self, vit: ViT, backend: str | None) -> None:
        super().__init__(backend)
        self._names = {module: name for name, module in vit.named_modules()}
        self.layer = ""

    def _enter(self, module: nn.Module) -> None:
        self.layer = self._names[module]

    def tokens(self, images: Tensor, vit: ViT) -> Tensor:
        """See Execution."""
        self._enter(vit.patch_embed.proj)
        return super().tokens(images, vit)

    def norm(self, x: Tensor, norm: nn.LayerNorm, to: IntegerDense) -> Quantized:
        """See Execution."""
        self._enter(norm)
        return super().norm(x, norm, to)

    def qkv(self, h: Quantized, attn: Attention) -> tuple[Quantized, Quantized, Quantized]:
        """See Execution."""
        self._enter(attn.qkv)
        return super().qkv(h, attn)

    def attention(self, q: Quantized, k: Quantized, v: Quantized, attn: Attention) -> Quantized:
        """See Execution."""
        self._enter(attn)
        return super().attention(q, k, v, attn)

    def residual(self, x: Tensor, h: Quantized, dense: IntegerDense) -> Tensor:
        """See Execution."""
        self._enter(dense)
        return super().residual(x, h, dense)

    def gelu(self, h: Quantized, mlp: Mlp) -> Quantized:
        """See Execution."""
        self._enter(mlp.fc1)
        return super().gelu(h, mlp)

    def head(self, x: Tensor, dense: IntegerDense) -> Tensor:
        """See Execution."""
        self._enter(dense)
        return super().head(x, dense)

    def logits(self, h: Quantized, dense: IntegerDense) -> Tensor:
        """See Execution."""
        self._enter(dense)
        return super().logits(h, dense)


def _describe(
    layer: str,
    weight_bits: float | None,
    op: str,
    arguments: tuple[Any, ...],
    result: object,
    backend: str | None,
    rates: MachineRates | None,
) -> Layer:
    moved = sum(t.numel() * t.element_size() for t in _tensors((arguments, result)))
    operations = _operations(op, arguments)
    floor = None
    if rates is not None:
        floor = max(moved / rates.bytes_per_second, operations / rates.operations_per_second)
    return Layer(
        name=layer,
        op=op,
        weight_bits=weight_bits,
        container_bits=None if weight_bits is None else _bits(arguments[2]),
        input_bits=_bits(arguments[0]),
        bytes=moved,
        operations=operations,
        floor=floor,
        route=find_route(op, arguments, backend),
    )


def _operations(op: str, arguments: tuple[Any, ...]) -> int:
    """Multiplications and additions of the matrix products that the op is defined by."""
    if op == "attention":
        batch, heads, tokens, width = arguments[0].shape
        return 4 * batch * heads * tokens * tokens * width
    if not op.startswith("linear"):
        return 0
    x, w = arguments[0], arguments[2]
    values = x.numel() * (8 // _bits(x))
    return 2 * values * w.shape[0]


def _bits(tensor: Tensor) -> int:
    """Of a value: uint8 holds two codes of four bits."""
    return 4 if tensor.dtype == torch.uint8 else 8 * tensor.element_size()


def _tensors(values: object) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)
