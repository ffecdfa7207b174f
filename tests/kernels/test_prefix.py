"""Ops that give the first tokens of an image 8 bits: the reference in two parts, and every backend against it."""

import re

import pytest
import torch

from qvit_kernels import fused, ops, reference
from qvit_kernels.reference import Quantized
from tests.kernels.operands import heads, rows, transform, weight
from tests.kernels.products import share_off

BACKENDS = ("cpu", "compiled", "triton")


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """A backend by its name; the compiled path is one of its own, and nothing falls back to the reference."""

    def refuse(name, reason, *arguments):
        raise AssertionError(f"{name} was computed by the reference: {reason}")

    monkeypatch.setattr(fused, "_compose", refuse)
    if request.param == "compiled":
        request.getfixturevalue("compiled_path")
    return "triton" if request.param == "triton" else "cpu"


def compare(call, backend: str, most: float = 0.0) -> None:
    expected, found = call("reference"), call(backend)
    torch.testing.assert_close(found.scale, expected.scale, rtol=1e-6 if most else 0, atol=0)
    assert share_off(found.codes, expected.codes) <= most


@pytest.mark.parametrize("bits", [2, 3, 4, 7])
@pytest.mark.parametrize("group", [0, 8])
@pytest.mark.parametrize("prefix", [1, 2, 5])
def test_the_reference_quantizes_the_prefix_with_8_bits_and_the_rest_as_without(
    bits, group, prefix
):
    x = torch.randn(3, 5, 24)
    found = reference.quantize_rows(x, bits, group, prefix=prefix)
    for part, width in ((slice(0, prefix), 8), (slice(prefix, None), bits)):
        alone = reference.quantize_rows(x[:, part], width, group)
        assert torch.equal(found.codes[:, part], alone.codes)
        assert torch.equal(found.scale[:, part], alone.scale)
    assert found.codes[:, :prefix].abs().max() == 127
    assert (found.scale[:, :prefix] > 0).all()


def test_the_reference_has_gradients_in_both_parts():
    x = torch.randn(2, 4, 8, requires_grad=True)
    reference.quantize_rows(x, 3, prefix=1).values().square().sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).any(-1).all()


# tokens that put the prefixes of two images at other places of a tile
@pytest.mark.parametrize(
    ("tokens", "prefix", "bits", "group", "block"),
    [(2, 1, 3, 0, 0), (7, 2, 3, 64, 64), (7, 1, 6, 0, 64), (33, 1, 4, 16, 64), (33, 5, 2, 64, 0)],
)
def test_rows(backend, tokens, prefix, bits, group, block):
    x, turn = torch.randn(2, tokens, 192), transform(192, block) if block else None
    compare(
        lambda name: ops.quantize_rows(x, turn, bits, group, prefix=prefix, backend=name), backend
    )


@pytest.mark.parametrize("group", [0, 64])
def test_norm(backend, group):
    x, gain, turn = torch.randn(2, 9, 192), torch.rand(192) + 0.5, transform(192, 64)
    compare(
        lambda name: ops.layernorm_quantize(
            x, gain, gain - 1, 1e-6, turn, 3, group, prefix=2, backend=name
        ),
        backend,
        1e-3,
    )


@pytest.mark.parametrize(
    ("kind", "group", "prefix"), [("w8a8", 64, 1), ("w4a8", 64, 5), ("w4a8", 0, 1)]
)
def test_gelu(backend, kind, group, prefix):
    """One scale a token is two launches, and groups are one."""
    n, k = 384, 96
    x, w, bias = rows(3, 19, k), weight(n, k, packed=kind == "w4a8"), torch.randn(n)
    turn = transform(n, 32)
    compare(
        lambda name: ops.linear_gelu_quantize(
            x, w, bias, "none", turn, 3, group, prefix=prefix, backend=name
        ),
        backend,
        1e-3,
    )


@pytest.mark.parametrize(("count", "group", "prefix"), [(2, 64, 1), (2, 0, 17), (6, 0, 2)])
def test_attention(backend, count, group, prefix):
    """6 heads of 64 channels in one scale are two launches."""
    q, k, v = heads(2, count, 17, 64)
    compare(
        lambda name: ops.attention(q, k, v, 0.125, 8, 3, group, prefix=prefix, backend=name),
        backend,
        1e-3,
    )


def test_attention_with_a_bias(backend):
    q, k, v = heads(2, 3, 7, 16)
    bias = torch.randn(1, 1, 7, 7)
    compare(
        lambda name: ops.attention(q, k, v, 0.25, 8, 3, 16, bias=bias, prefix=1, backend=name),
        backend,
        1e-3,
    )


def test_more_rows_than_one_block(backend):
    """Blocks of rows, or of threads, begin within an image."""
    if backend == "triton":
        pytest.skip("the interpreter takes a minute, and its programs are small in test_rows, too")
    x = torch.randn(9, 197, 1536)
    compare(lambda name: ops.quantize_rows(x, None, 3, 64, prefix=1, backend=name), backend)


X = torch.ones(2, 3, 64)
CODES = Quantized(torch.ones(2, 3, 64, dtype=torch.int8), torch.ones(2, 3, 1))
HEADS = tuple(
    Quantized(torch.ones(1, 2, 3, 32, dtype=torch.int8), torch.ones(1, 2, 3, 1)) for _ in "qkv"
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"prefix": 4},
            "prefix must be 0, or rows of an image [..., T, K] of T at least as many, got 4",
        ),
        ({"prefix": -1}, "got -1"),
        ({"prefix": 1, "packed": True}, "packed must be False or prefix 0"),
        ({"prefix": 1, "static_scale": torch.ones(1, 1)}, "static_scale must be None or prefix 0"),
        ({"prefix": 1, "bits": 8}, "prefix must be 0 where all rows have 8 bits, got 1"),
    ],
)
@pytest.mark.parametrize(
    "op", ["quantize_rows", "layernorm_quantize", "linear_gelu_quantize", "attention"]
)
def test_refused(op, options, message):
    options = {"bits": 3, **options}
    vector = torch.ones(64)
    calls = {
        "quantize_rows": lambda: ops.quantize_rows(X, None, **options),
        "layernorm_quantize": lambda: ops.layernorm_quantize(
            X, vector, vector, 1e-6, None, **options
        ),
        "linear_gelu_quantize": lambda: ops.linear_gelu_quantize(
            CODES, weight(64, 64), None, "none", None, **options
        ),
        "attention": lambda: ops.attention(*HEADS, 1.0, 8, **options),
    }
    with pytest.raises(ValueError, match=re.escape(message)):
        calls[op]()


def test_rows_of_no_image():
    with pytest.raises(ValueError, match=re.escape("got 1 for (64,)")):
        ops.quantize_rows(torch.ones(64), None, 3, prefix=1)
