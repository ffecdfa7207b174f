"""What a product does with its tile: GELU and quantization, heads of Q, K and V."""

import pytest
import torch

from qvit_kernels import composed, gemm_plans, reference
from qvit_kernels.packing import unpack_int4
from qvit_kernels.tiles import Tile
from tests.kernels import operands
from tests.kernels.products import KINDS, Product, product, run, share_off


def signs_of(width: int, block: int):
    return torch.randint(0, 2, (width,)).float() * 2 - 1 if block else None


def grid_of(codes: torch.Tensor, packed: bool) -> torch.Tensor:
    return unpack_int4(codes, 2 * codes.shape[-1]) if packed else codes


def quantized(operands: Product, bias, approximate, signs, *grid, tile=None, capability=0):
    """Codes and scale by the kernel and by the reference."""
    surrounded = operands.surrounded()
    planned = gemm_plans.plan_gelu_quantize(
        *surrounded, bias, approximate, signs, *grid, tile=tile, capability=capability
    )
    packed = grid[-1]
    codes, scale = run(planned)
    wanted, wanted_scale = composed.linear_gelu_quantize(*operands, bias, approximate, signs, *grid)
    return grid_of(codes, packed), scale, grid_of(wanted, packed), wanted_scale


def near_the_reference(codes, scale, wanted, wanted_scale):
    torch.testing.assert_close(scale, wanted_scale, rtol=1e-6, atol=0)
    return share_off(codes, wanted)


def within_a_sample(share: float, codes) -> bool:
    """Two codes off: the contract's 1e-5 is a share of millions, and of 29,000 codes one sample in thirty shows two."""
    return share * codes.numel() <= 2.001


GRIDS = [
    # block, bits, group, packed
    (32, 8, 128, False),
    (16, 8, 64, False),
    (8, 4, 64, True),
    (128, 4, 128, True),
    (0, 8, 32, False),
    (64, 3, 16, False),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("block", "bits", "group", "packed"), GRIDS)
def test_gelu_quantize(kind, block, bits, group, packed):
    x = product(kind, 40, 256, 192, width=32 if kind != "w8a8" else 0)
    signs = signs_of(256, block)
    result = quantized(x, torch.randn(256), "none", signs, block, bits, group, packed)
    assert within_a_sample(near_the_reference(*result), result[0])


# each architecture has its own form of the main loop, and its own order of columns
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_forms(kind, capability):
    tile = Tile(64, 128, 64, 4, 2)
    x = product(kind, 70, 192, 128, width=32 if kind != "w8a8" else 0)
    result = quantized(
        x, None, "none", signs_of(192, 32), 32, 8, 64, False, tile=tile, capability=capability
    )
    assert within_a_sample(near_the_reference(*result), result[0])
    x = product(kind, (2, 35), 3 * 2 * 64, 128, width=32 if kind != "w8a8" else 0)
    made, wanted = heads_of(x, None, 2, 8, [], None, 0, tile, capability)
    assert all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True))
    x = product(kind, (2, 35), 3 * 2 * 64, 128, groups=2)
    made, wanted = heads_of(x, None, 2, 8, [], None, 0, tile, capability)
    assert all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("n", [24, 96, 192, 136])
def test_ragged_widths(n, approximate):
    result = quantized(
        product("w8a8", 17, n, 96), torch.randn(n), approximate, None, 0, 8, 8, False
    )
    assert within_a_sample(near_the_reference(*result), result[0])


@pytest.mark.parametrize("m", [0, 1, 16, 63, 150])
def test_rows_of_gelu(m):
    result = quantized(
        product("w4a8", m, 192, 64), None, "none", signs_of(192, 32), 32, 8, 64, False,
        tile=Tile(64, 128, 64, 4, 2),
    )  # fmt: skip
    if m:
        assert within_a_sample(near_the_reference(*result), result[0])
    else:
        assert result[0].shape == (0, 192)


def test_rows_of_zeros_have_the_smallest_scale():
    x, scale, w, w_scale, _ = product("w8a8", 3, 128, 64)
    x[1] = 0
    codes, scales, _, wanted = quantized(
        Product(x, scale, w, w_scale), None, "none", None, 0, 8, 64, False
    )
    assert (codes[1] == 0).all()
    assert (scales[1] == 2.0**-100).all()
    torch.testing.assert_close(scales, wanted, rtol=1e-6, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("block", [0, 8, 32])
@pytest.mark.parametrize("kind", ["w8a8", "w4a8"])
def test_gelu_keeps_the_contract(kind, block, approximate):
    """1.2 million codes, at most 1e-5 of them off, by one step."""
    off = []
    for _ in range(8):
        x = product(kind, 197, 768, 192)
        result = quantized(
            x, torch.randn(768), approximate, signs_of(768, block), block, 8, 128, False,
            tile=Tile(64, 128, 64, 4, 2),
        )  # fmt: skip
        off.append(near_the_reference(*result))
    assert sum(off) / len(off) <= 1e-5


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("kind", KINDS)
def test_gelu_in_float(kind, approximate):
    """The first of two launches, where one scale serves a whole row."""
    x = product(kind, 17, 96, 192)
    bias = torch.randn(96)
    y = run(gemm_plans.plan_linear(*x.surrounded(), bias, approximate=approximate))
    expected = reference.gelu(composed.linear(*x, bias), approximate)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("group", "packed", "rows", "block", "fits"),
    [
        (128, False, 256, 32, True),
        (64, True, 256, 0, True),
        (0, False, 256, 32, False),  # a scale for the whole row
        (256, False, 256, 32, False),
        (96, False, 192, 32, False),  # not a power of two
        (32, True, 96, 32, False),  # half a block of packed codes
        (64, False, 192, 192, False),  # a transform with an odd part
        (64, False, 256, 256, False),
    ],
)
def test_when_one_launch_is_enough(group, packed, rows, block, fits):
    signs = signs_of(rows, block)
    assert gemm_plans.quantizes_in_tile(rows, signs, block, group, packed) == fits


def heads_of(operands: Product, bias, heads, bits, norm, signs, block, tile=None, capability=0):
    arguments = (bias, heads, bits, norm, 1e-6, signs, block)
    surrounded = operands.surrounded()
    made = run(gemm_plans.plan_qkv(*surrounded, *arguments, tile=tile, capability=capability))
    wanted = composed.linear_qkv(*operands, *arguments)
    assert made[4].stride() == wanted[4].stride()
    return made, wanted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("heads", "width"), [(5, 32), (3, 64), (2, 80), (2, 96), (2, 128), (3, 16)]
)
def test_qkv(kind, bits, heads, width):
    x = product(kind, (2, 19), 3 * heads * width, 192, width=64 if kind != "w8a8" else 0)
    made, wanted = heads_of(x, torch.randn(3 * heads * width), heads, bits, [], None, 0)
    assert all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True))


@pytest.mark.parametrize("tokens", [1, 16, 63, 197])
@pytest.mark.parametrize("batch", [1, 3])
def test_qkv_tokens(tokens, batch):
    x = product("w8a8", (batch, tokens), 3 * 64, 64, groups=1)
    made, wanted = heads_of(x, None, 1, 8, [], None, 0, Tile(64, 64, 64, 4, 2))
    assert all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True))


def test_qkv_of_nothing():
    made, _ = heads_of(product("w8a8", (0, 5), 96, 64), None, 1, 8, [], None, 0)
    assert [tensor.shape[:3] for tensor in made] == [(0, 1, 5)] * 6


@pytest.mark.parametrize(("width", "block"), [(64, 64), (64, 0), (96, 32), (80, 16)])
def test_qkv_with_norms(width, block):
    x = product("w8a8", (2, 19), 6 * width, 192)
    norm = list(operands.norm(width)[:4])
    signs = signs_of(width, block)
    made, wanted = heads_of(x, torch.randn(6 * width), 2, 8, norm, signs, block)
    for i in (0, 2, 4):
        assert within_a_sample(share_off(made[i], wanted[i]), made[i])
        torch.testing.assert_close(made[i + 1], wanted[i + 1], rtol=1e-6, atol=0)
    assert torch.equal(made[4], wanted[4])


def codes_at(steps: list[float], bits: int, unit: int) -> list[int]:
    """Codes of Q where it is exactly so many steps. The first is what makes a step 1; unit: parts of a step."""
    width = 32
    sums = torch.zeros(width, dtype=torch.int32)
    sums[: len(steps)] = (torch.tensor(steps) * unit).int()
    x = torch.zeros(1, 2, 64, dtype=torch.int8)
    x[..., 0], x[..., 1] = 16, 1
    w = torch.zeros(3 * width, 64, dtype=torch.int8)
    w[:width, 0], w[:width, 1] = sums // 16, sums % 16
    operands = Product(x, torch.ones(1, 2, 1), w, torch.full((3 * width,), 1 / unit))
    made, wanted = heads_of(operands, None, 1, bits, [], None, 0)
    assert torch.equal(made[0], wanted[0])
    assert made[1][0, 0, 0].item() == 1
    return made[0][0, 0, 0, : len(steps)].tolist()


EXTREME = reference.steps_of(4)


def test_ties_go_to_even():
    assert codes_at([127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5], 8, 2) == [127, 0, 2, 2, 0, -2, -2]
    assert codes_at([EXTREME, 0.5, 1.5, 2.5, -0.5, -1.5], 4, 128) == [7, 0, 2, 2, 0, -2]


def test_saturation_at_both_ends():
    """The extreme of a row rounds to 8, which a nibble does not hold, or to -8, which it does."""
    assert codes_at([EXTREME, -EXTREME], 4, 128) == [7, -8]
    assert codes_at([-127, 127], 8, 2) == [-127, 127]


@pytest.mark.parametrize(
    ("rows", "heads", "norm", "block", "reason"),
    [
        (3 * 256, 1, False, 0, "wider than 128"),
        (3 * 96, 1, True, 96, "not a power of two"),
        (3 * 96, 1, True, 32, None),
    ],
)
def test_what_heads_are_not_supported(rows, heads, norm, block, reason):
    vectors = list(operands.norm(96)[:4]) if norm else []
    said = gemm_plans.supports_qkv(rows, heads, vectors, signs_of(96, block), block)
    assert said is None if reason is None else reason in said
