"""The registry of what a model can be timed as: timm's float model in its ways, other people's int8, and ours.

A variant says what it stores and computes in, what it needs, and how it is built; whoever adds one adds a line here.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qvit import machine
from qvit.kept import PRECISIONS, compiled_twin
from qvit.latency import rivals
from qvit.latency.floats import FloatModels, Runner

if TYPE_CHECKING:
    from torch import Tensor

Build = Callable[[FloatModels, "Tensor"], Runner]

EAGER, COMPILED, LIBRARY = "eager", "compile", "library"


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Why a variant cannot run here, and the command that would change it."""

    reason: str
    command: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A way to run the model.

    Attributes:
        name: In reports and after --baseline.
        storage_bits: Of a weight where it is kept.
        compute_dtype: What matrix products are made in.
        mode: "eager", "compile" or "library".
        devices: Where it exists.
        packages: Import name -> distribution to install.
        build: From the float models and images of one batch size to a runner; raises whatever it dislikes.
    """

    name: str
    storage_bits: int
    compute_dtype: str
    mode: str
    build: Build
    devices: tuple[str, ...] = ("cpu", "cuda")
    packages: Mapping[str, str] | None = None

    def find_missing(self, device: str) -> Missing | None:
        """What it lacks on this machine, None where it can be tried."""
        kind = device.partition(":")[0]
        if kind not in self.devices:
            return Missing(reason=f"runs on {' and '.join(self.devices)} only")
        lacking = [
            distribution
            for package, distribution in (self.packages or {}).items()
            if importlib.util.find_spec(package) is None
        ]
        if lacking:
            words = " and ".join(lacking)
            return Missing(
                reason=f"{words} not installed", command=f"pip install {' '.join(lacking)}"
            )
        if self.mode == COMPILED and kind == "cpu" and machine.find_compiler() is None:
            return Missing(
                reason="torch.compile needs a C++ compiler on a CPU, and none was found",
                command="apt-get install g++  # or name one in CXX",
            )
        if self.name == "torchao-fp8" and not _has_fp8():
            return Missing(reason="this card has no fp8 (compute capability 8.9 or newer has)")
        return None


def _has_fp8() -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)


def _float(name: str, compiled: bool) -> Variant:
    dtype = PRECISIONS[name]

    def build(floats: FloatModels, images: "Tensor") -> Runner:
        return floats.compiled(dtype) if compiled else floats.eager(dtype)

    return Variant(
        name=compiled_twin(name) if compiled else name,
        storage_bits=32 if name == "fp32" else 16,
        compute_dtype=name,
        mode=COMPILED if compiled else EAGER,
        build=build,
    )


_ONNX = {"onnx": "onnx", "onnxruntime": "onnxruntime", "onnxscript": "onnxscript"}
_TORCHAO = {"torchao": "torchao"}


def _library(name: str, build: Build, **settings: Any) -> Variant:
    fields = {"storage_bits": 8, "compute_dtype": "int8", "mode": LIBRARY} | settings
    return Variant(name=name, build=build, **fields)


def _registry(*variants: Variant) -> dict[str, Variant]:
    return {variant.name: variant for variant in variants}


FLOAT: Mapping[str, Variant] = _registry(
    *(_float(name, compiled) for compiled in (False, True) for name in PRECISIONS)
)
RIVALS: Mapping[str, Variant] = _registry(
    # Dynamic W8A8: the other way to go without data, so the rival that matters most.
    _library("torchao-int8", rivals.torchao("Int8DynamicActivationInt8WeightConfig"), mode=COMPILED, packages=_TORCHAO),
    _library(
        "torchao-fp8", rivals.torchao("Float8DynamicActivationFloat8WeightConfig"), mode=COMPILED, packages=_TORCHAO,
        devices=("cuda",), compute_dtype="fp8",
    ),
    _library("onnxruntime-dynamic", rivals.onnx_dynamic, devices=("cpu",), packages=_ONNX),
    _library("onnxruntime-static", rivals.onnx_static, devices=("cpu",), packages=_ONNX),
    _library("openvino-int8", rivals.openvino_int8, devices=("cpu",), packages={"openvino": "openvino", "nncf":
    "nncf"}), _library(
        "tensorrt-fp16", rivals.tensorrt_fp16, devices=("cuda",), packages={"torch_tensorrt": "torch-tensorrt"},
        storage_bits=16, compute_dtype="fp16",
    ),
)  # fmt: skip
VARIANTS: Mapping[str, Variant] = {**FLOAT, **RIVALS}
