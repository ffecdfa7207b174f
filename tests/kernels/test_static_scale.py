"""Ops that quantize with a given scale: every backend against the reference, and what the reference means by it."""

import pytest
import torch

from qvit_kernels import fused, gemm_plans, ops, reference
from qvit_kernels.reference import code_range
from tests.kernels.operands import heads, rows, transform, weight
from tests.kernels.products import share_off

BACKENDS = ("cpu", "compiled", "triton")
# group 0: one scale for the tensor; 24 and 48 are no powers of two, which a maximum over a tile would need
GROUPS = (0, 64, 128)


def scales(width, group, size=0.02):
    return torch.rand(1, width // group if group else 1) * size + size


@pytest.fixture(autouse=True)
def no_fall_backs(monkeypatch):
    """A fall-back to the reference would agree with it."""

    def refuse(name, reason, *arguments):
        raise AssertionError(f"{name} was computed by the reference: {reason}")

    monkeypatch.setattr(fused, "_compose", refuse)


@pytest.fixture
def backend(request):
    """A backend by its name; the compiled path is one of its own."""
    if request.param == "compiled":
        request.getfixturevalue("compiled_path")
    return "triton" if request.param == "triton" else "cpu"


def compare(call, backend, most=0.0):
    expected = call("reference")
    found = call(backend)
    assert found.scale is expected.scale  # the one that was given
    if most:
        assert share_off(found.codes, expected.codes) <= most
    else:
        assert torch.equal(found.codes, expected.codes)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_reference_rounds_and_saturates(bits):
    low, high = code_range(bits)
    x = torch.tensor([[-1e6, -0.75, -0.25, 0.25, 0.26, 0.75, 1e6, 0.0]])
    codes, scale = reference.quantize_rows(x, bits, 4, given := torch.tensor([[0.5, 0.125]]))
    assert scale is given
    assert codes.tolist() == [[low, -2, 0, 0, 2, 6, high, 0]]  # -1.5 and -0.5, 0.5: to even


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("bits", "packed"), [(8, False), (4, False), (4, True)])
@pytest.mark.parametrize("block", [0, 32, 64])
def test_rows(backend, group, bits, packed, block):
    x, turn = torch.randn(17, 384), transform(384, block) if block else None
    given = scales(384, group, 0.3 if bits == 4 else 0.02)
    compare(
        lambda name: ops.quantize_rows(
            x, turn, bits, group, packed=packed, static_scale=given, backend=name
        ),
        backend,
    )


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_norm(backend):
    x, weights, given = torch.randn(2, 9, 192), torch.rand(192), scales(192, 64)
    turn = transform(192, 64)
    compare(
        lambda name: ops.layernorm_quantize(
            x, weights, weights - 0.5, 1e-6, turn, 8, 64, static_scale=given, backend=name
        ),
        backend,
        1e-3,
    )


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("kind", ["w8a8", "w4a8"])
@pytest.mark.parametrize("group", [0, 24, 48, 128])
@pytest.mark.parametrize(
    ("bits", "packed", "block"), [(8, False, 0), (8, False, 32), (4, True, 32)]
)
def test_gelu(backend, kind, group, bits, packed, block):
    n, k = 384, 96
    x, w, bias = rows(19, k), weight(n, k, packed=kind == "w4a8"), torch.randn(n)
    turn, given = transform(n, block) if block else None, scales(n, group, 0.1)
    compare(
        lambda name: ops.linear_gelu_quantize(
            x, w, bias, "none", turn, bits, group, packed=packed, static_scale=given, backend=name
        ),
        backend,
        1e-3,
    )


@pytest.mark.parametrize("group", [0, 24, 512])
def test_a_tile_need_not_hold_a_group(group):
    """What a dynamic scale takes two launches for."""
    arguments = (1536, None, 0, group, False)
    assert gemm_plans.quantizes_in_tile(*arguments, static=True)
    assert not gemm_plans.quantizes_in_tile(*arguments)


def test_two_launches_where_a_transform_is_wider_than_a_tile():
    x, w, given = rows(5, 64), weight(512, 64), scales(512, 0, 0.1)
    turn = transform(512, 256)
    compare(
        lambda name: ops.linear_gelu_quantize(
            x, w, None, "tanh", turn, 8, static_scale=given, backend=name
        ),
        "triton",
        1e-3,
    )


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize(("count", "group", "bits", "packed"), [
    (2, 0, 8, False), (2, 64, 8, False), (6, 0, 8, False), (4, 128, 4, True), (6, 0, 4, True),
])  # fmt: skip
def test_attention(backend, count, group, bits, packed):
    """6 heads of 64 channels in one scale are two launches."""
    q, k, v = heads(2, count, 17, 64)
    given = scales(count * 64, group, 0.1 if bits == 4 else 0.01)
    compare(
        lambda name: ops.attention(
            q, k, v, 0.125, 8, bits, group, packed=packed, static_scale=given, backend=name
        ),
        backend,
        1e-3,
    )


def test_the_next_product_takes_it_as_it_is():
    x, given = torch.randn(3, 64), scales(64, 0)
    y = ops.linear(ops.quantize_rows(x, None, 8, static_scale=given), weight(24, 64), None)
    assert y.shape == (3, 24)
