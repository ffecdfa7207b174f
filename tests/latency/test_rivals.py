"""Rivals of other libraries: left out with a command where they are absent, built as their documentation says."""

import sys
from types import ModuleType
from types import SimpleNamespace as Namespace

import pytest
import torch

from qvit import zoo
from qvit.latency import variants
from qvit.latency.floats import FloatModels
from qvit.latency.variants import RIVALS

TENSORRT = RIVALS["tensorrt-fp16"]


@pytest.fixture
def floats(tiny_model, tmp_path):
    return FloatModels(zoo.resolve(f"local-dir:{tiny_model}"), "cpu", 0, tmp_path)


def find(monkeypatch, *present):
    monkeypatch.setattr(variants.importlib.util, "find_spec", lambda name: name in present or None)


def test_tensorrt_is_left_out_with_the_command_that_adds_it(monkeypatch):
    find(monkeypatch)
    missing = TENSORRT.find_missing("cuda:0")
    assert missing.reason == "torch-tensorrt not installed"
    assert missing.command == "pip install torch-tensorrt"
    assert "cuda only" in TENSORRT.find_missing("cpu").reason
    find(monkeypatch, "torch_tensorrt")
    assert TENSORRT.find_missing("cuda") is None


def test_tensorrt_compiles_the_float_model_in_fp16(floats, monkeypatch):
    """As Torch-TensorRT's backend of torch.compile, which importing the package registers."""
    monkeypatch.setitem(sys.modules, "torch_tensorrt", ModuleType("torch_tensorrt"))
    asked = []

    def compile(model, **settings):
        asked.append((next(model.parameters()).dtype, settings))
        return model

    monkeypatch.setattr(torch, "compile", compile)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        runner = TENSORRT.build(floats, images)
        prepared = runner.prepare(images)
        found = runner.logits(runner.run(prepared))
    ((dtype, settings),) = asked
    assert dtype == prepared.dtype == torch.float16
    assert settings["backend"] == "tensorrt"
    assert settings["options"] == {"use_explicit_typing": True}
    assert found.shape == (2, floats.load().num_classes)
    assert found.dtype == torch.float32
    assert runner.weight_bytes == 2 * sum(p.numel() for p in floats.load().parameters())
    assert TENSORRT.build(floats, images) is runner  # made once


def test_tensorrt_that_cannot_be_imported_says_so(floats, monkeypatch):
    """A package whose libraries do not fit the driver is found, and fails at its import."""
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(ImportError, match="torch_tensorrt"):
        TENSORRT.build(floats, torch.randn(1, 3, 32, 32))


def test_torchao_quantizes_by_the_named_configuration(floats, monkeypatch):
    applied = []
    fake = Namespace(
        quantize_=lambda model, config: applied.append((type(model).__name__, config)),
        Int8DynamicActivationInt8WeightConfig=lambda: "dynamic int8",
    )
    monkeypatch.setattr("qvit.latency.rivals.import_module", lambda name: fake)
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    runner = RIVALS["torchao-int8"].build(floats, torch.randn(1, 3, 32, 32))
    assert applied == [("VisionTransformer", "dynamic int8")]
    assert runner.model is not None
