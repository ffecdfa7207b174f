"""int8 products against the reference: equal, bit by bit."""

import itertools

import pytest
import torch

from qvit_kernels import composed, gemm_plans
from qvit_kernels.tiles import Tile
from tests.kernels.operands import codes
from tests.kernels.products import ROWS, WIDTHS, Product, check_linear, product, run

DEPTHS = (32, 48, 64, 96, 192, 384)
TILES = [
    Tile(128, 128, 64, 8, 3),
    Tile(64, 128, 128, 4, 3),
    Tile(32, 64, 32, 4, 2),
    Tile(16, 64, 64, 4, 3),
]


@pytest.mark.parametrize("m", ROWS)
def test_rows(m):
    check_linear(product("w8a8", m, 96, 192), torch.randn(96))


@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("k", DEPTHS)
def test_ragged_columns(n, k):
    check_linear(product("w8a8", 17, n, k), torch.randn(n))


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_tiles(tile):
    check_linear(product("w8a8", 150, 136, 96), torch.randn(136), tile)


@pytest.mark.slow
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize(("m", "n", "k"), list(itertools.product(ROWS, WIDTHS, DEPTHS)))
def test_matrix(m, n, k, tile):
    check_linear(product("w8a8", m, n, k), torch.randn(n), tile)


# 3 groups of 64, 128 and 192: one tile of K a group, or several; 320 can overflow 2^22
@pytest.mark.parametrize("width", [64, 128, 192, 320])
@pytest.mark.parametrize("static", [False, True])
def test_groups_of_x(width, static):
    check_linear(product("w8a8", 17, 40, 3 * width, groups=3, static=static))


def test_static_scale():
    check_linear(product("w8a8", (2, 9), 40, 96, static=True), torch.randn(40))


@pytest.mark.parametrize("value", [-127, 127])
def test_extremes(value):
    """3072 columns of the largest products: the sum, 49.5 million, has more bits than fp32."""
    x, scale, w, w_scale, _ = product("w8a8", 5, 24, 3072)
    check_linear(Product(x.fill_(value), scale, w.fill_(127), w_scale))


def test_pixels_reach_minus_128():
    x, scale, w, w_scale, _ = product("w8a8", 5, 24, 192, groups=1)
    check_linear(Product(x.fill_(-128), scale, w.fill_(-128), w_scale))
    x, scale, w, w_scale, _ = product("w8a8", 5, 24, 384, groups=2)
    check_linear(Product(x.fill_(-128), scale, w.fill_(-128), w_scale))


def test_rows_of_zeros():
    x, scale, w, w_scale, _ = product("w8a8", 5, 24, 96)
    x[2] = 0
    scale[2] = 2.0**-100
    check_linear(Product(x, scale, w, w_scale), torch.randn(24))


def test_strided_operands():
    whole = product("w8a8", 34, 80, 192)
    x = codes(34, 2 * 192)[::2, ::2]
    w = codes(192, 40).t()
    scale, w_scale = whole.x_scale[::2], whole.w_scale[::2]
    bias = torch.randn(80)[::2]
    y = run(gemm_plans.plan_linear(x, scale, w, w_scale, None, bias))
    assert torch.equal(y, composed.linear(x, scale, w, w_scale, None, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("m", [17, 150])
def test_residual(dtype, m):
    operands = product("w8a8", m, 96, 192)
    residual = (torch.randn(96, m) * 3).to(dtype).t()
    bias = torch.randn(96)
    y = run(gemm_plans.plan_linear(*operands.surrounded(), bias, residual))
    expected = composed.linear_residual(*operands, bias, residual)
    assert y.dtype == dtype
    assert torch.equal(y, expected)


@pytest.mark.parametrize(
    ("operands", "reason"),
    [
        (product("w8a8", 3, 24, 96, groups=3), "32 columns each"),
        (product("w8a8", 3, 24, 96, width=32), "must be packed"),
    ],
    ids=["narrow groups", "multipliers"],
)
def test_what_is_not_supported(operands, reason):
    assert reason in gemm_plans.supports(*operands)


def test_rows_that_no_grid_holds():
    """65,535 tiles of 16 rows; tiles of 128 would hold more, but a table may name any."""
    _, _, w, w_scale, _ = product("w8a8", 1, 24, 32)
    for rows, held in ((65_535 * 16, True), (65_535 * 16 + 1, False)):
        x = torch.empty(rows, 32, dtype=torch.int8, device="meta")
        reason = gemm_plans.supports(x, torch.ones(1, 1), w, w_scale, None)
        assert reason is None if held else "what a grid holds" in reason
