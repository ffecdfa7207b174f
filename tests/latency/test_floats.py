"""Float models as their users run them: that what is called compiled is compiled."""

import pytest
import torch

from qvit import zoo
from qvit.latency.floats import FloatModels, compile_all


def test_each_variant_and_batch_size_is_compiled(tiny_model, tmp_path, monkeypatch):
    """All modules of a class share what torch counts: the third of these would run eagerly."""
    compiled = []

    def note(graph, images):
        compiled.append(images)
        return graph

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **how: real(model, backend=note, **how))
    floats = FloatModels(zoo.resolve(f"local-dir:{tiny_model}"), "cpu", 0, tmp_path)
    images = {batch: torch.randn(batch, 3, 32, 32) for batch in (1, 2)}
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=2), compile_all(10), torch.inference_mode():
        for dtype in ("float32", "bfloat16"):
            for batch in images.values():
                floats.compiled(dtype).bind(batch)()
    assert len(compiled) == 4


def test_a_compilation_too_many_is_an_error(tiny_model, tmp_path, monkeypatch):
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **how: real(model, backend="eager", **how))
    floats = FloatModels(zoo.resolve(f"local-dir:{tiny_model}"), "cpu", 0, tmp_path)
    torch.compiler.reset()
    with compile_all(1), torch.inference_mode():
        assert torch._dynamo.config.recompile_limit == 8
        with torch._dynamo.config.patch(recompile_limit=1):
            floats.compiled("float32").bind(torch.randn(1, 3, 32, 32))()
            with pytest.raises(Exception, match=r"(?i)recompile"):
                floats.compiled("float32").bind(torch.randn(2, 3, 32, 32))()
