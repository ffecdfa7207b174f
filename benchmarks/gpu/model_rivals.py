"""Whole float models beside ours, as their users run them: timm's with SDPA, compiled, in CUDA graphs, by torchao."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from benchmarks.cases.kernels import TINY, model_config
from benchmarks.gpu.rivals import compiled
from benchmarks.gpu.session import Session
from benchmarks.gpu.timing import first_line

Call = Callable[[], object]
_NAMES = {
    "deit_t": "deit_tiny_patch16_224",
    "deit_s": "deit_small_patch16_224",
    "deit_b": "deit_base_patch16_224",
    "vit_l": "vit_large_patch16_224",
}
_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
# As torchao's documentation has them: scales of activations by row, as ours.
_TORCHAO = {
    "torchao int8": "Int8DynamicActivationInt8WeightConfig",
    "torchao fp8": "Float8DynamicActivationFloat8WeightConfig",
}


def plain_rivals(model: str, batch: int, session: Session) -> dict[str, Call]:
    """timm's model in fp16 and bf16; its attention is SDPA."""
    calls = {}
    for name, dtype in _HALF.items():
        calls[name] = _call(
            _timm_model(model, session, dtype), _images(model, batch, session, dtype)
        )
    return calls


def compiled_rival(model: str, batch: int, session: Session, mode: str | None = None) -> Call:
    """The bf16 one under torch.compile; fp16 compiles to the same code with another type. mode: of torch.compile."""
    float_model = _timm_model(model, session, torch.bfloat16)
    fast = compiled(float_model, dry=session.dry, mode=mode)
    return _call(fast, _images(model, batch, session, torch.bfloat16))


def torchao_rivals(
    model: str, batch: int, session: Session
) -> tuple[dict[str, Call], dict[str, str]]:
    """By torchao's dynamic int8 and fp8, compiled, each Linear of the model; and which are left out, and why."""
    found: dict[str, Call] = {}
    left_out: dict[str, str] = {}
    for name, config in _TORCHAO.items():
        try:
            if find_spec("torchao") is None:
                raise ImportError("torchao is not installed")
            quantization = import_module("torchao.quantization")
            float_model = _timm_model(model, session, torch.bfloat16)
            quantization.quantize_(float_model, getattr(quantization, config)())
            fast = compiled(float_model, dry=session.dry, mode="max-autotune-no-cudagraphs")
            found[name] = _call(fast, _images(model, batch, session, torch.bfloat16))
        except Exception as error:  # noqa: BLE001 - libraries refuse versions and cards in their own ways
            left_out[name] = first_line(error)
    return found, left_out


def _call(model: Any, images: torch.Tensor) -> Call:
    def run() -> object:
        with torch.no_grad():
            return model(images)

    return run


def _images(model: str, batch: int, session: Session, dtype: torch.dtype) -> torch.Tensor:
    shape = (batch, 3, *model_config(model).image_size)
    return torch.randn(shape, device=session.device, dtype=dtype)


def _timm_model(model: str, session: Session, dtype: torch.dtype) -> nn.Module:
    import timm

    config = model_config(model)
    if model in TINY:
        made = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=config.image_size,
            embed_dim=config.embed_dim,
            num_heads=config.num_heads,
            depth=1,
            num_classes=config.num_classes,
        )
    else:
        made = timm.create_model(_NAMES[model], pretrained=False)
    return made.to(session.device, dtype).eval()
