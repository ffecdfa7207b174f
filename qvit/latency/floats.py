"""timm's float model as its users run it: eager or compiled, in any precision, each made once and kept."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qvit import zoo
from qvit.zoo import Source


@dataclass(frozen=True, slots=True)
class Runner:
    """A model made ready for images of one batch size.

    Attributes:
        prepare: Images fp32 [B, C, H, W] on the device, as the model takes them; not part of the time.
        run: One pass over what `prepare` gave; returns logits in the model's own form.
        logits: That form as fp32 [B, classes] on the CPU.
        weight_bytes: Of all weights where they are kept; None where a library does not say.
        model: The module, where it is torch's.
    """

    prepare: Callable[[Tensor], Any]
    run: Callable[[Any], Any]
    logits: Callable[[Any], Tensor]
    weight_bytes: int | None
    model: nn.Module | None = None

    def bind(self, images: Tensor) -> Callable[[], object]:
        """A pass over these images, without arguments."""
        prepared = self.prepare(images)
        return lambda: self.run(prepared)


class FloatModels:
    """The float models of one source on one device; `work` is a folder for what libraries convert."""

    def __init__(self, source: Source, device: str, seed: int, work: Path) -> None:
        self.device = device
        self.work = work
        self._source = source
        self._seed = seed
        self._kept: dict[str, Any] = {}

    def load(self) -> nn.Module:
        """A model of its own in fp32, on the CPU, in eval mode."""
        with torch.inference_mode(False):
            return zoo.load(self._source, seed=self._seed).eval().requires_grad_(False)

    def eager(self, dtype: str) -> Runner:
        """The model in torch's dtype of this name, run by Python."""
        return self.keep(dtype, lambda: as_runner(self._model(dtype), getattr(torch, dtype)))

    def compiled(self, dtype: str) -> Runner:
        """The same under torch.compile, which compiles for each batch size at its first pass."""

        def make() -> Runner:
            return as_runner(self._model(dtype), getattr(torch, dtype), compiled=True)

        return self.keep(f"{dtype}-compile", make)

    def keep(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, made once."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def _model(self, dtype: str) -> nn.Module:
        def make() -> nn.Module:
            return self.load().to(self.device, getattr(torch, dtype))

        return self.keep(f"{dtype}-model", make)


def as_runner(model: nn.Module, dtype: torch.dtype, *, compiled: bool = False) -> Runner:
    """A module that takes images of `dtype`; `compiled`: run it under torch.compile."""
    call: Callable[[Any], Any] = torch.compile(model, dynamic=False) if compiled else model
    return Runner(
        prepare=lambda images: images.to(dtype),
        run=call,
        logits=lambda out: out.detach().float().cpu(),
        weight_bytes=bytes_of(model),
        model=model,
    )


def compile_all(count: int) -> AbstractContextManager[object]:
    """Within it, `count` compilations are made and used, however alike the modules; one too many is an error.

    Every compiled variant of a model and every batch size is a compilation of the one forward of its class, and torch
    runs what is beyond the eighth eagerly, with a line in a log.
    """
    import torch._dynamo.config

    return torch._dynamo.config.patch(
        recompile_limit=max(count, 8),
        accumulated_recompile_limit=max(count, 256),
        fail_on_recompile_limit_hit=True,
    )


def bytes_of(model: nn.Module) -> int:
    """Of all parameters and buffers; of a tensor subclass, what it is made of."""
    return sum(map(_bytes, (*model.parameters(), *model.buffers())))


def _bytes(tensor: Tensor) -> int:
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None or type(tensor) in (Tensor, nn.Parameter):
        return tensor.numel() * tensor.element_size()
    return sum(_bytes(getattr(tensor, name)) for name in flatten()[0])
