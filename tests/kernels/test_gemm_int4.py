"""Products with packed int4 weights, and with packed int4 on both sides, against the reference: equal."""

import itertools

import pytest
import torch

from qvit_kernels import composed, gemm_plans
from qvit_kernels.packing import pack_int4
from qvit_kernels.tiles import Tile
from tests.kernels.operands import codes
from tests.kernels.products import ROWS, WIDTHS, Product, check_linear, product, run

TILES = [
    Tile(128, 128, 128, 8, 3),
    Tile(64, 128, 64, 4, 3),
    Tile(32, 64, 128, 4, 2),
    Tile(16, 64, 64, 4, 3),
]
PACKED = ("w4a8", "w4a4")


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("m", ROWS)
def test_rows(kind, m):
    check_linear(product(kind, m, 96, 192, width=32), torch.randn(96))


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("k", [64, 192, 384])
def test_whole_blocks(kind, n, k):
    check_linear(product(kind, 17, n, k), torch.randn(n))


# a last block of 1, 24, 32, 48 and 63 columns: it has halves of its own
@pytest.mark.parametrize("k", [1, 24, 32, 48, 63, 65, 96, 127, 160, 240])
@pytest.mark.parametrize("block_k", [64, 128])
def test_short_last_blocks(k, block_k):
    operands = product("w4a8", 17, 24, k)
    if k % 2:
        operands.w[:, -1] |= 0xF0  # a nibble of no column
        exact = codes(24, k, bits=4)
        stored = pack_int4(exact)
        stored[:, -1] |= 0xF0
        operands = Product(operands.x, operands.x_scale, stored, operands.w_scale)
        y = run(
            gemm_plans.plan_linear(*operands.surrounded(), None, tile=Tile(32, 64, block_k, 4, 2))
        )
        expected = composed.linear(
            operands.x, operands.x_scale, exact, operands.w_scale, None, None
        )
        assert torch.equal(y, expected)
    else:
        check_linear(operands, None, Tile(32, 64, block_k, 4, 2))


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("width", [16, 32, 64, 128, 192, 384])
@pytest.mark.parametrize("block_k", [64, 128])
def test_multipliers(kind, width, block_k):
    check_linear(
        product(kind, 17, 72, 384, width=width), torch.randn(72), Tile(32, 64, block_k, 4, 2)
    )


@pytest.mark.parametrize(
    ("k", "width"), [(32, 32), (32, 16), (96, 16), (96, 32), (160, 32), (192, 64)]
)
@pytest.mark.parametrize("block_k", [64, 128])
def test_multipliers_with_short_last_blocks(k, width, block_k):
    check_linear(product("w4a8", 17, 24, k, width=width), None, Tile(32, 64, block_k, 4, 2))


@pytest.mark.parametrize("multiplier", [-15, -1, 1, 15])
@pytest.mark.parametrize("code", [-8, 7])
@pytest.mark.parametrize("kind", PACKED)
def test_extremes(kind, code, multiplier):
    x, scale, w, w_scale, _ = product(kind, 5, 24, 384)
    x = torch.full((5, 384), -8 if kind == "w4a4" else -127, dtype=torch.int8)
    x = pack_int4(x) if kind == "w4a4" else x
    w = pack_int4(torch.full((24, 384), code, dtype=torch.int8))
    check_linear(Product(x, scale, w, w_scale, torch.full((24, 12), multiplier, dtype=torch.int8)))


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("width", [0, 16, 32, 64])
@pytest.mark.parametrize("group", [64, 128, 192])
def test_groups_of_x(kind, width, group):
    check_linear(product(kind, 17, 40, 2 * group, groups=2, width=width), torch.randn(40))


@pytest.mark.parametrize("kind", PACKED)
def test_static_scale(kind):
    check_linear(product(kind, (2, 9), 40, 192, static=True, width=32))


@pytest.mark.parametrize("kind", PACKED)
def test_strided_operands(kind):
    base = product(kind, 34, 80, 192, width=32)
    assert base.multiplier is not None
    operands = (
        base.x[::2],
        base.x_scale[::2],
        base.w[::2],
        base.w_scale[::2],
        base.multiplier[::2],
    )
    y = run(gemm_plans.plan_linear(*operands, None))
    assert torch.equal(y, composed.linear(*operands, None))


def test_weights_at_an_odd_address():
    """A register of four bytes shares a multiplier: the bytes must be neighbours, as only aligned rows make sure."""
    base = product("w4a8", 17, 24, 192, width=32)
    memory = torch.empty(base.w.numel() + 1, dtype=torch.uint8)
    w = memory[1:].view_as(base.w).copy_(base.w)
    operands = Product(base.x, base.x_scale, w, base.w_scale, base.multiplier)
    launch, _ = gemm_plans.plan_linear(*operands, None)
    assert launch.arguments["w_ptr"].data_ptr() % 16 == 0
    check_linear(operands)


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_residual(kind, dtype):
    operands = product(kind, 17, 96, 192, width=32)
    residual = torch.randn(17, 96).to(dtype)
    y = run(gemm_plans.plan_linear(*operands.surrounded(), None, residual))
    assert torch.equal(y, composed.linear_residual(*operands, None, residual))


@pytest.mark.slow
@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("width", [0, 16, 32, 64])
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize(("m", "n", "k"), list(itertools.product(ROWS, WIDTHS, (64, 192, 384))))
def test_matrix(m, n, k, tile, width, kind):
    check_linear(product(kind, m, n, k, width=width), torch.randn(n), tile)


@pytest.mark.parametrize(
    ("operands", "reason"),
    [
        (product("w4a8", 3, 24, 96, width=24), "groups of 24 columns"),
        (product("w4a8", 3, 24, 48, width=16), "multiple of 32 columns"),
        (product("w4a4", 3, 24, 96), "multiple of 64 columns"),
        (product("w4a8", 3, 24, 192, groups=6), "32 columns each"),
    ],
    ids=["width 24", "48 columns", "packed 96 columns", "narrow groups"],
)
def test_what_is_not_supported(operands, reason):
    assert reason in gemm_plans.supports(*operands)
