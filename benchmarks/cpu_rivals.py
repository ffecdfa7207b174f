"""Other ways to run a float ViT in int8 on a CPU, where they are installed: OpenVINO with NNCF, ONNX Runtime.

Calibration images are random: they set scales, which do not change the time.
"""

import tempfile
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_CALIBRATION_IMAGES = 4

Call = Callable[[], object]
# name -> packages that it needs
RIVALS = {
    "openvino-int8": ("openvino", "nncf"),
    "onnxruntime-dynamic": ("onnx", "onnxruntime", "onnxscript"),
    "onnxruntime-static": ("onnx", "onnxruntime", "onnxscript"),
}


def missing(name: str) -> str | None:
    """The packages that a rival lacks here, or None."""
    lacking = [package for package in RIVALS[name] if find_spec(package) is None]
    return f"not installed: {', '.join(lacking)}" if lacking else None


def build(name: str, model: nn.Module, images: Tensor) -> Call:
    """A pass of a float model, fp32 in eval mode, over images fp32 [B, C, H, W], in int8 by this rival."""
    makers = {"openvino-int8": _openvino, "onnxruntime-dynamic": _onnx, "onnxruntime-static": _onnx}
    return makers[name](name, model, images)


def _openvino(name: str, model: nn.Module, images: Tensor) -> Call:
    """NNCF's post-training quantization with its transformer preset; OpenVINO's latency mode."""
    nncf, openvino = import_module("nncf"), import_module("openvino")
    converted = openvino.convert_model(model, example_input=images, input=[tuple(images.shape)])
    calibration = nncf.Dataset(
        [torch.randn_like(images).numpy() for _ in range(_CALIBRATION_IMAGES)]
    )
    quantized = nncf.quantize(converted, calibration, model_type=nncf.ModelType.TRANSFORMER)
    compiled = openvino.Core().compile_model(
        quantized,
        "CPU",
        {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()},
    )
    request, values = compiled.create_infer_request(), images.numpy()
    return lambda: request.infer([values], share_inputs=True, share_outputs=True)


def _onnx(name: str, model: nn.Module, images: Tensor) -> Call:
    """ONNX Runtime's own quantizers: weights only stored, activations at run time, or both by calibration (QDQ)."""
    ort = import_module("onnxruntime")
    quantization = import_module("onnxruntime.quantization")
    preparation = import_module("onnxruntime.quantization.shape_inference")
    with tempfile.TemporaryDirectory() as folder:
        exported, prepared, path = (
            str(Path(folder) / f"{n}.onnx") for n in ("float", "prepared", "int8")
        )
        torch.onnx.export(
            model, (images,), exported, input_names=["images"], dynamo=True, external_data=False
        )
        preparation.quant_pre_process(exported, prepared)
        if name == "onnxruntime-dynamic":
            quantization.quantize_dynamic(
                prepared, path, weight_type=quantization.QuantType.QInt8, per_channel=True
            )
        else:
            quantization.quantize_static(
                prepared, path, _Calibration(images), per_channel=True,
                activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            )  # fmt: skip
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {"images": images.numpy()}
    return lambda: session.run(None, feed)


class _Calibration:
    """What `quantize_static` reads: random images, one batch at a time."""

    def __init__(self, images: Tensor) -> None:
        self._left = [
            {"images": torch.randn_like(images).numpy()} for _ in range(_CALIBRATION_IMAGES)
        ]

    def get_next(self) -> dict[str, Any] | None:
        return self._left.pop() if self._left else None
