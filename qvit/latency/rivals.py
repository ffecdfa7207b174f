"""Other people's ways to run the float model in fewer bits, where they are installed; nothing here is imported before.

Calibration images are random: they set scales, which do not change the time. So static rivals agree with the float
model less than they could, and their agreement is not reported.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvit.latency.floats import FloatModels, Runner, as_runner

_CALIBRATION_IMAGES = 4


def torchao(config: str) -> Callable[[FloatModels, Tensor], Runner]:
    """torchao's quantization of every Linear by a configuration of this name, compiled as its documentation says."""

    def build(floats: FloatModels, images: Tensor) -> Runner:
        def make() -> Runner:
            quantization = import_module("torchao.quantization")
            dtype = torch.bfloat16 if floats.device.startswith("cuda") else torch.float32
            model = floats.load().to(floats.device, dtype)
            quantization.quantize_(model, getattr(quantization, config)())
            return as_runner(model, dtype, compiled=True)

        return floats.keep(config, make)

    return build


def openvino_int8(floats: FloatModels, images: Tensor) -> Runner:
    """NNCF's post-training quantization with its transformer preset; OpenVINO's latency mode."""
    openvino = import_module("openvino")
    path = floats.work / f"openvino-{len(images)}.xml"
    if not path.exists():
        nncf = import_module("nncf")
        with torch.inference_mode(False), torch.no_grad():
            example = images.clone()
            converted = openvino.convert_model(
                floats.load(), example_input=example, input=[tuple(images.shape)]
            )
        calibration = nncf.Dataset(
            [torch.randn_like(images).numpy() for _ in range(_CALIBRATION_IMAGES)]
        )
        quantized = nncf.quantize(converted, calibration, model_type=nncf.ModelType.TRANSFORMER)
        openvino.save_model(quantized, path)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    return Runner(
        prepare=lambda images: images.numpy(),
        run=lambda images: request.infer([images], share_inputs=True, share_outputs=True),
        logits=lambda out: torch.from_numpy(out[0].copy()),
        weight_bytes=path.with_suffix(".bin").stat().st_size,
    )


def onnx_dynamic(floats: FloatModels, images: Tensor) -> Runner:
    """ONNX Runtime's dynamic quantization: weights stored in int8, activations quantized as they come."""
    return _onnx(floats, images, "dynamic")


def onnx_static(floats: FloatModels, images: Tensor) -> Runner:
    """ONNX Runtime's calibrated quantization, as Q/DQ."""
    return _onnx(floats, images, "static")


def _onnx(floats: FloatModels, images: Tensor, kind: str) -> Runner:
    ort = import_module("onnxruntime")
    path = floats.work / f"onnxruntime-{kind}-{len(images)}.onnx"
    if not path.exists():
        _quantize_onnx(_export(floats, images), path, images, kind)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Runner(
        prepare=lambda images: {"images": images.numpy()},
        run=lambda feed: session.run(None, feed),
        logits=lambda out: torch.from_numpy(out[0]),
        weight_bytes=path.stat().st_size,
    )


def _export(floats: FloatModels, images: Tensor) -> Path:
    prepared = floats.work / f"float-{len(images)}.onnx"
    if not prepared.exists():
        exported = floats.work / f"exported-{len(images)}.onnx"
        preparation = import_module("onnxruntime.quantization.shape_inference")
        with torch.inference_mode(False), torch.no_grad():
            torch.onnx.export(
                floats.load(), (images.clone(),), str(exported),
                input_names=["images"], dynamo=True, external_data=False, verbose=False,
            )  # fmt: skip
        preparation.quant_pre_process(str(exported), str(prepared))
    return prepared


def _quantize_onnx(prepared: Path, path: Path, images: Tensor, kind: str) -> None:
    quantization = import_module("onnxruntime.quantization")
    signed, unsigned = quantization.QuantType.QInt8, quantization.QuantType.QUInt8
    if kind == "dynamic":
        quantization.quantize_dynamic(
            str(prepared), str(path), weight_type=signed, per_channel=True
        )
        return
    quantization.quantize_static(
        str(prepared), str(path), _Calibration(images),
        per_channel=True, activation_type=unsigned, weight_type=signed,
    )  # fmt: skip


class _Calibration:
    """What `quantize_static` reads: random images, one batch at a time."""

    def __init__(self, images: Tensor) -> None:
        self._left = [
            {"images": torch.randn_like(images).numpy()} for _ in range(_CALIBRATION_IMAGES)
        ]

    def get_next(self) -> dict[str, Any] | None:
        return self._left.pop() if self._left else None


def tensorrt_fp16(floats: FloatModels, images: Tensor) -> Runner:
    """TensorRT in fp16, through torch.compile's backend of Torch-TensorRT.

    Explicit typing takes the module's own precision; older versions would build an engine in fp32 without it, and
    newer ones refuse the set of precisions that used to be asked for instead.
    """

    def make() -> Runner:
        import_module("torch_tensorrt")
        model = floats.load().to(floats.device, torch.float16)
        options: dict[str, Any] = {"use_explicit_typing": True}
        call = torch.compile(model, backend="tensorrt", dynamic=False, options=options)
        plain = as_runner(model, torch.float16)
        return Runner(plain.prepare, call, plain.logits, plain.weight_bytes)

    return floats.keep("tensorrt-fp16", make)
