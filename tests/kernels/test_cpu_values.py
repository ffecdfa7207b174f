"""Values of the cpu backend beside what they should be, not beside the reference's: GELU, and what is no number."""

import pytest
import torch

from qvit_kernels import ops, reference
from qvit_kernels.ops import Quantized, Weight, use_backend
from tests.kernels.operands import codes, weight

pytestmark = pytest.mark.usefixtures("path")


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_how_exact_gelu_is(approximate, path):
    """The scale of 16 equal values says what each of them is. torch's fp32 erf is off by 1.2e-6."""
    values = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([1e-30, 0.0, -1e-6, 3e4])])
    ones = torch.ones(16, 16, dtype=torch.int8)
    x = Quantized(torch.zeros(len(values), 16, dtype=torch.int8), values[:, None])
    x.codes[:, 0] = 1
    with use_backend("cpu"):
        found = ops.linear_gelu_quantize(
            x, Weight(ones, torch.ones(16)), None, approximate, None, 8
        )
    expected = torch.nn.functional.gelu(values.double(), approximate=approximate)
    error = (found.codes[:, 0].double() * found.scale[:, 0].double() - expected).abs()
    most = 3e-7 if path == "compiled" else 1.3e-6
    assert bool((error <= most + 2e-7 * values.clamp(min=0)).all())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 5, 63])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_what_is_no_number_shows_in_the_scale(value, place, bits):
    """And codes stay within the grid, or they could not be packed."""
    x = torch.randn(3, 64)
    x[1, place] = value
    with use_backend("cpu"):
        found = ops.quantize_rows(x, None, bits)
        activated = ops.linear_gelu_quantize(
            Quantized(codes(3, 16), x[:, :1] + x[:, place : place + 1] * 0),
            weight(64, 16), torch.randn(64), "none", None, bits,
        )  # fmt: skip
        if bits < 8:
            ops.quantize_rows(x, None, bits, packed=True)
    assert found.scale.isfinite().flatten().tolist() == [True, False, True]
    assert activated.scale.isfinite().flatten().tolist() == [True, False, True]
    low, high = reference.code_range(bits)
    assert int(found.codes.min()) >= low
    assert int(found.codes.max()) <= high
