import sys
from types import SimpleNamespace

import torch

from qvit_kernels import inductor
from qvit_kernels.registration import SCHEMAS


def test_tracing_names_every_op_to_a_compiler_that_is_loaded(monkeypatch):
    lowering = SimpleNamespace(FALLBACK_ALLOW_LIST={"aten::index_add"})
    monkeypatch.setitem(sys.modules, "torch._inductor.lowering", lowering)
    x = torch.empty(3, 32, device="meta")
    torch.ops.qvit.quantize_rows.default(x, None, 1, 8, 0, False, None, 0)
    assert {
        "aten::index_add",
        *(f"qvit::{name}" for name in SCHEMAS),
    } == lowering.FALLBACK_ALLOW_LIST


def test_a_compiler_that_is_not_loaded_stays_so(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch._inductor.lowering", raising=False)
    inductor.announce(["qvit::linear"])
    assert "torch._inductor.lowering" not in sys.modules


def test_a_compiler_without_such_a_list_is_left_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._inductor.lowering", SimpleNamespace())
    inductor.announce(["qvit::linear"])
