"""The product of patches between prefix tokens and position embeddings, against the reference: equal, bit by bit."""

import pytest
import torch

from qvit_kernels import composed, gemm_plans, ops
from qvit_kernels.tiles import Tile
from tests.kernels.operands import rows, weight
from tests.kernels.products import product, run


def check(kind, batch, patches, n, k, prefix, positions, dtype=torch.float32, tile=None, width=0):
    """prefix: a number of tokens; positions: "tokens", "patches" or none."""
    operands = product(kind, (batch, patches), n, k, static=True, width=width)
    before = torch.randn(prefix, n) if prefix else None
    count = {"tokens": prefix + patches, "patches": patches, None: 0}[positions]
    places = (before, torch.randn(count, n) if positions else None, dtype)
    bias = torch.randn(n)
    planned = gemm_plans.plan_embed(*operands.surrounded(), bias, *places, tile=tile)
    assert torch.equal(run(planned), composed.linear_embed(*operands, bias, *places))


@pytest.mark.parametrize("positions", ["tokens", "patches", None])
@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_places(prefix, positions):
    check("w8a8", 3, 9, 40, 48, prefix, positions)


@pytest.mark.parametrize("batch", [0, 1, 2, 7])
@pytest.mark.parametrize("patches", [1, 16, 49])
def test_tiles_that_hold_pieces_of_several_images(batch, patches):
    check("w8a8", batch, patches, 24, 64, 1, "tokens", tile=Tile(32, 64, 64, 4, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounded_to_the_dtype_of_the_stream(dtype):
    check("w8a8", 2, 9, 40, 48, 1, "tokens", dtype)


@pytest.mark.parametrize("width", [0, 32])
def test_packed_weights(width):
    check("w4a8", 2, 9, 72, 96, 1, "tokens", width=width)


def test_a_prefix_is_not_touched_by_scale_or_bias():
    x, w = rows(2, 4, 32), weight(24, 32)
    prefix = torch.randn(2, 24)
    found = ops.linear_embed(x, w, torch.full((24,), torch.inf), prefix, None, backend="triton")
    assert torch.equal(found[:, :2], prefix.expand(2, -1, -1))
    assert found[:, 2:].isposinf().all()


X, W = rows(2, 9, 32), weight(24, 32)
REFUSED = {
    "two axes": (lambda: ops.linear_embed(rows(9, 32), W, None, None, None), ValueError,
                 r"x must be \[B, P, K\], got \(9, 32\)"),
    "width": (lambda: ops.linear_embed(X, W, None, torch.zeros(1, 23), None), ValueError,
              r"prefix must be \[\.\.\., 24\] of two axes, got \(1, 23\)"),
    "half": (lambda: ops.linear_embed(X, W, None, None, torch.zeros(9, 24).half()), TypeError,
             r"positions must be torch\.float32"),
    "count": (lambda: ops.linear_embed(X, W, None, torch.zeros(2, 24), torch.zeros(10, 24)), ValueError,
              r"positions must be for 9 patches or for 11 tokens, got \(10, 24\)"),
    "dtype": (lambda: ops.linear_embed(X, W, None, None, None, torch.float64), TypeError,
              r"dtype must be .* got torch\.float64"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        call()


def test_results_of_more_rows_than_a_grid_holds_fall_back():
    operands = [t.to("meta") for t in (*rows(1, 1, 16, groups=1), *weight(8, 16)[:2])]
    many = operands[0].expand(65_535 * 16, 1, 16)
    rest = (operands[1], *operands[2:], None)
    assert gemm_plans.supports(many, *rest) is None
    assert "more than" in gemm_plans.supports(many, *rest, more_rows=many.shape[0])
