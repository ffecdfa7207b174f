import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qvit_kernels import (
    backends,
    composed,
    cpu,
    fused,
    integer_matmul,
    ops,
    registration,
    routes,
)
from qvit_kernels.fused_plans import describe
from qvit_kernels.routes import find_route
from tests.kernels.operands import CALLS, STATIC_CALLS, heads, rows, transform, weight

# Shapes that no kernel takes, and some that take two launches.
ODD_CALLS = {
    "attention": lambda: ops.attention(*heads(1, 1, 3, 160), 0.1, 8, 8),
    "layernorm_quantize": lambda: ops.layernorm_quantize(
        torch.randn(2, 48), torch.rand(48), torch.randn(48), 1e-6, transform(48, 12), 8
    ),
    "linear": lambda: ops.linear(rows(2, 5, 32), weight(24, 32, groups=2), None),
    "linear_qkv": lambda: ops.linear_qkv(rows(1, 3, 32), weight(3 * 160, 32), None, 1, 8),
    "linear_gelu_quantize": lambda: ops.linear_gelu_quantize(
        rows(2, 5, 32), weight(72, 32), None, "none", None, 8
    ),
    # of two launches the second has no kernel
    "linear_gelu_quantize alone": lambda: ops.linear_gelu_quantize(
        rows(2, 5, 32), weight(72, 32), None, "none", transform(72, 12), 8
    ),
}


class Calls(TorchDispatchMode):
    """Keeps every call of an op of qvit."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "qvit":
            self.made.append((func.name().partition("::")[2], args))
        return func(*args, **(kwargs or {}))


def called(call):
    with Calls() as calls:
        call()
    (found,) = calls.made
    return found


CASES = {
    f"{op}, {kind}": call
    for kind, calls in (("dynamic", CALLS), ("static", STATIC_CALLS), ("odd", ODD_CALLS))
    for op, call in calls.items()
}


@pytest.mark.parametrize("case", CASES)
def test_route_is_the_one_that_is_taken(case, monkeypatch):
    ran, reasons = [], []

    def compose(name, reason, *rest):
        reasons.append(reason)
        return getattr(composed, name)(*rest)

    monkeypatch.setattr(fused, "_run", lambda x, *launches: ran.extend(launches))
    monkeypatch.setattr(fused, "_compose", compose)
    with ops.use_backend("triton"):
        op, arguments = called(CASES[case])
        route = find_route(op, arguments)
    assert case.startswith(op)
    assert [describe(launch) for launch in ran] == [*zip(route.kernels, route.tiles, strict=True)]
    assert [route.reason] == (reasons or [None])
    assert route.backend == ("reference" if reasons and not ran else "triton")


@pytest.mark.parametrize("case", CASES)
def test_the_compiled_path_is_named_where_it_computes(case, monkeypatch, compiled_path):
    left = []

    def noting(function):
        return lambda *arguments: left.append(function.__name__) or function(*arguments)

    for name in registration.SCHEMAS:
        monkeypatch.setattr(cpu, name, noting(getattr(cpu, name)))
    with ops.use_backend("cpu"):
        op, arguments = called(CASES[case])
        route = find_route(op, arguments)
    assert route.kernels == (() if left else ("vnni",))
    assert (route.backend, route.reason) == ("cpu", None)


def test_words_of_a_route():
    _, arguments = called(CALLS["linear_qkv"])
    route = find_route("linear_qkv", arguments, "triton")
    assert route.kernels == ("qkv_kernel",)
    assert route.tiles[0] == "16x64x32, 4 warps"
    assert route.computes_in == "int8"
    two = called(ODD_CALLS["linear_gelu_quantize"])
    assert find_route(*two, "triton").kernels == ("linear_kernel", "quantize_rows_kernel")
    half = find_route(*called(ODD_CALLS["linear_gelu_quantize alone"]), "triton")
    assert (half.backend, half.kernels) == ("triton", ("linear_kernel",))
    assert "not a power of two" in half.reason
    assert "wider than 128" in find_route(*called(ODD_CALLS["linear_qkv"]), "triton").reason


def test_other_backends():
    product, rows_alone = called(CALLS["linear"]), called(CALLS["quantize_rows"])
    assert find_route(*product, "reference") == routes.Route("reference", (), (), "float", None)
    assert find_route(*rows_alone, "cpu") == routes.Route("cpu", (), (), None, None)
    found = find_route(*product, "auto")
    assert found.computes_in == ("int8" if integer_matmul.int8_matmul_pays() else "float")


def test_reasons_of_backends(monkeypatch):
    product, rows_alone = called(CALLS["linear"]), called(CALLS["quantize_rows"])
    monkeypatch.setattr(routes, "int8_matmul_pays", lambda: False)
    for exact, words in ((False, "saturates"), (True, "slower than its fp32")):
        monkeypatch.setattr(routes, "int8_matmul_is_exact", lambda exact=exact: exact)
        found = find_route(*product, "cpu")
        assert found.computes_in == "float"
        assert words in found.reason
    assert find_route(*rows_alone, "cpu").reason is None
    elsewhere = torch.empty(3, 32, device="meta")
    monkeypatch.setattr(backends, "warn_once", lambda message: None)
    found = find_route("quantize_rows", (elsewhere, None, 1, 8, 0, False, None, 0), "auto")
    assert "written for NVIDIA GPUs" in found.reason
