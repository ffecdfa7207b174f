"""The attention kernel in Triton's interpreter against the composed op: equal codes, equal scales.

The codes of P come after an exponential and a sum whose last bits are the backend's own, so one code in 100,000 may be
off by a step. Ties are where: the values of a row are integers times one factor, so that a ratio to the largest of them
is often a tie (a 4-bit row's largest magnitude lies 8 steps from zero, and a sixteenth of it half a step). There the
last bit of the row decides between two codes, and either is right.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from qvit_kernels import attention_int8, composed, reference, storage
from qvit_kernels.attention_tiles import (
    IN_PASSES,
    IN_PASSES_OF_FEW_ROWS,
    Tile,
    chunks_of,
    output_pieces_of,
    pieces_of,
    tile_of,
)
from qvit_kernels.packing import unpack_int4
from qvit_kernels.reference import TINY, Quantized
from tests.kernels.operands import rows

CANARY = 0x3C


def operands(batch: int, heads: int, tokens: int, width: int) -> list[Any]:
    """q, k, v with their scales, bias and mask: none. The padding of V holds 127."""
    parts: list[Any] = []
    for _ in range(3):
        parts += rows(batch, heads, tokens, width)
    parts[4] = stored(parts[4], 127)
    return [*parts, None, None]


def stored(codes: Tensor, padding: int) -> Tensor:
    values = storage.empty_values(codes.shape, codes.device)
    torch.empty(0, dtype=torch.int8).set_(values.untyped_storage()).fill_(padding)
    return values.copy_(codes)


def guarded(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """A poisoned tensor like this one inside a larger one, and the larger one's bytes."""
    size = tensor.numel() * tensor.element_size()
    memory = torch.full((size + 128,), CANARY, dtype=torch.uint8)
    inner = memory[64 : 64 + size]
    inner.fill_(0x55)
    return inner.view(tensor.dtype).view(tensor.shape), memory


def run(*arguments, tile: Tile | None = None) -> tuple[Tensor, Tensor]:
    """What the launches write, checked to be all of their outputs and nothing else."""
    launches, results = attention_int8.plan(*arguments, tile=tile)
    outputs = [guarded(result) for result in results]
    last = launches[-1].arguments
    for name, given in list(last.items()):
        for result, (inner, _) in zip(results, outputs, strict=True):
            if given is result:
                last[name] = inner
    for launch in launches:
        launch.run()
    for _, memory in outputs:
        assert (memory[:64] == CANARY).all()
        assert (memory[-64:] == CANARY).all()
    return outputs[0][0], outputs[1][0]


def float_rows(arguments: tuple) -> Tensor:
    """The output before it is quantized, fp32 [B, T, H * d]."""
    q, qs, k, ks, v, vs, bias, mask, softmax_scale, softmax_bits = arguments[:10]
    parts = [Quantized(x.float(), s) for x, s in ((q, qs), (k, ks), (v, vs))]
    return reference.attention(
        *parts,
        softmax_scale=softmax_scale,
        softmax_bits=softmax_bits,
        bias=bias,
        mask=mask,
        bound=128 * 128,
    )


def differing(arguments: tuple, tile: Tile | None = None) -> tuple[Tensor, Tensor]:
    """Which codes differ, by a step, and which of all lie within 1e-5 steps of a tie; anything worse fails."""
    codes, scale = run(*arguments, tile=tile)
    expected_codes, expected_scale = composed.attention(*arguments)
    assert codes.dtype == expected_codes.dtype
    assert codes.shape == expected_codes.shape
    assert scale.shape == expected_scale.shape
    torch.testing.assert_close(scale, expected_scale, rtol=1e-6, atol=0)
    if codes.dtype == torch.uint8:
        width = arguments[0].shape[1] * arguments[0].shape[3]
        codes, expected_codes = (unpack_int4(x, width) for x in (codes, expected_codes))
    apart = (codes.int() - expected_codes.int()).abs()
    assert (apart <= 1).all()
    y = float_rows(arguments).unflatten(-1, (expected_scale.shape[-1], -1))
    steps = (y / expected_scale.unsqueeze(-1)).flatten(-2)
    return apart > 0, (steps.abs() % 1 - 0.5).abs() < 1e-5


def assert_equal(*arguments, tile: Tile | None = None) -> None:
    wrong, tied = differing(arguments, tile)
    assert (wrong & ~tied).sum() <= math.ceil(1e-5 * wrong.numel())


@pytest.mark.parametrize(
    ("tokens", "width", "group_heads", "softmax_bits", "bits", "packed"),
    [
        (1, 64, 2, 8, 8, False),
        (2, 32, 2, 4, 4, True),
        (16, 80, 1, 8, 8, False),
        (17, 64, 2, 8, 4, True),
        (49, 32, 2, 8, 8, False),
        (63, 96, 2, 4, 4, True),
        (63, 128, 1, 8, 4, False),
        (65, 48, 1, 4, 8, False),
        (197, 64, 2, 8, 8, False),
        (201, 64, 2, 4, 4, True),
        (257, 64, 1, 8, 8, False),
    ],
)
def test_composed_is_matched(tokens, width, group_heads, softmax_bits, bits, packed):
    grid = (width**-0.5, softmax_bits, bits, group_heads * width, packed)
    assert_equal(*operands(1, 2, tokens, width), *grid)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 2, 16, 17, 49, 63, 197, 201, 257])
@pytest.mark.parametrize("width", [32, 64, 80, 96, 128])
@pytest.mark.parametrize("group_heads", [0, 1, 2])
@pytest.mark.parametrize(("softmax_bits", "bits", "packed"), [(8, 8, False), (4, 4, True)])
def test_composed_is_matched_everywhere(tokens, width, group_heads, softmax_bits, bits, packed):
    arguments = (*operands(2, 4, tokens, width), width**-0.5, softmax_bits, bits)
    arguments = (*arguments, group_heads * width, packed)
    reason = attention_int8.supports(arguments[0], group_heads * width, packed)
    if reason:
        # what the second launch cannot do: 80 channels share a byte of packed codes with the next head
        assert packed
        assert (group_heads * width) % 64
        pytest.skip(reason)
    assert_equal(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "heads"), [(577, 2), (1370, 1), (1500, 1)])
@pytest.mark.parametrize("bits", [4, 8])
def test_long_rows(tokens, heads, bits):
    assert_equal(*operands(1, heads, tokens, 64), 0.125, 8, bits, 64, bits == 4)


@pytest.mark.parametrize(
    "tile",
    [
        Tile(16, 1, 1, 0, 16),
        Tile(32, 2, 1, 0, 16),
        Tile(32, 4, 1, 0, 32),
        Tile(32, 8, 1, 0, 64),
        IN_PASSES,
        IN_PASSES_OF_FEW_ROWS,
        Tile(16, 4, 2, 32, 32),
    ],
)
def test_every_tile_computes_the_same(tile):
    """70 keys: whole steps and a rest in every way of cutting them."""
    arguments = (*operands(1, 2, 70, 64), 0.125, 8, 8, 128, False)
    assert_equal(*arguments, tile=tile)


@pytest.mark.parametrize("group", [0, 32, 64, 128, 256])
@pytest.mark.parametrize("packed", [False, True])
def test_groups(group, packed):
    """32 is half a head, 0 is five heads: these take a second launch."""
    if packed and group == 32:
        pytest.skip("a byte of packed codes would have two scales")
    heads = 5 if group == 0 else 4
    arguments = (*operands(2, heads, 9, 64), 0.125, 8, 4 if packed else 8, group, packed)
    launches, _ = attention_int8.plan(*arguments)
    assert len(launches) == (2 if group in (0, 32) else 1)
    assert_equal(*arguments)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("tile", [None, IN_PASSES])
def test_bias_and_mask(batch, heads, tile):
    arguments = operands(4, 2, 67, 32)
    arguments[6] = torch.randn(batch, heads, 67, 67) * 2
    arguments[7] = torch.rand(batch, heads, 67, 67) > 0.3
    arguments[7][:, :, 5] = False  # these see nothing, and so everything alike
    arguments[7][:, :, 66] = False
    arguments[7][:, :, 6, 1:] = False  # this sees one key
    assert_equal(*arguments, 32**-0.5, 8, 8, 64, False, tile=tile)


def test_bias_of_another_batch_and_number_of_heads_than_the_mask():
    arguments = operands(4, 2, 20, 32)
    arguments[6] = torch.randn(2, 2, 20, 20)
    arguments[7] = torch.rand(4, 1, 20, 20) > 0.5
    assert_equal(*arguments, 32**-0.5, 4, 8, 32, False)


@pytest.mark.parametrize("value", [-128, -127, 127])
def test_extreme_codes(value):
    arguments = operands(1, 2, 65, 128)
    for i in (0, 2, 4):
        arguments[i].fill_(value)
    assert_equal(*arguments, 128**-0.5, 8, 8, 128, False)


def test_rows_of_zeros_in_v_do_not_raise_the_scale():
    arguments = operands(1, 2, 50, 64)
    arguments[4][:, :, ::2] = 0
    arguments[5][:, :, ::2] = TINY
    assert_equal(*arguments, 0.125, 8, 8, 128, False)


def test_v_of_nothing_but_zeros():
    arguments = operands(1, 2, 33, 64)
    arguments[4].zero_()
    arguments[5].fill_(TINY)
    codes, scale = run(*arguments, 0.125, 8, 8, 128, False)
    assert (codes == 0).all()
    assert (scale == TINY).all()


def test_one_dominant_key():
    arguments = operands(1, 2, 100, 64)
    arguments[2][:, :, 70] = arguments[0][:, :, :1].squeeze(2)
    arguments[3][:, :, 70] = 50.0
    assert_equal(*arguments, 0.125, 8, 8, 128, False)


@pytest.mark.parametrize("padding", [-1, 127])
@pytest.mark.parametrize("tokens", [1, 33, 70])
def test_padding_of_v_is_never_seen(padding, tokens):
    arguments = operands(1, 2, tokens, 64)
    expected = run(*arguments, 0.125, 8, 8, 128, False)
    arguments[4] = stored(arguments[4], padding)
    for tile in (None, Tile(32, 8, 1, 0, 64), IN_PASSES):
        got = run(*arguments, 0.125, 8, 8, 128, False, tile=tile)
        assert torch.equal(got[0], expected[0])


def test_strided_inputs():
    arguments = operands(2, 2, 19, 64)
    expected = run(*arguments, 0.125, 8, 8, 128, False)
    for i in range(6):
        wider = torch.full((19, 2, 3, arguments[i].shape[-1], 2), 9).to(arguments[i].dtype)
        view = wider[:, :, 1:, :, 0].permute(2, 1, 0, 3)
        arguments[i] = view.copy_(arguments[i])
        assert not arguments[i].is_contiguous()
    got = run(*arguments, 0.125, 8, 8, 128, False)
    assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))


def test_tokens_cut_from_longer_values():
    """A slice has the strides of a V of its own but not the memory behind its last channel."""
    arguments = operands(1, 1, 40, 32)
    longer = storage.empty_values((1, 1, 64, 32), torch.device("cpu")).copy_(
        torch.cat((arguments[4], arguments[4][:, :, :24]), 2)
    )
    arguments[4] = longer[:, :, 24:]
    assert_equal(*arguments, 32**-0.5, 8, 8, 32, False)


def test_no_images_and_no_tokens():
    for batch, tokens in ((0, 5), (2, 0)):
        arguments = (*operands(batch, 2, tokens, 64), 0.125, 8, 8, 128, False)
        codes, scale = run(*arguments)
        assert codes.shape == (batch, tokens, 128)
        assert scale.shape == (batch, tokens, 1)


def test_what_has_no_kernel_says_why():
    def reason_of(heads, width, group):
        return attention_int8.supports(operands(1, heads, 3, width)[0], group, False)

    assert "160 channels" in (reason_of(1, 160, 160) or "")
    assert "96" in (reason_of(3, 64, 96) or "")
    assert reason_of(2, 64, 128) is None


def test_keys_are_cut_into_powers_of_two():
    assert chunks_of(197, 16) == ((0, 128), (128, 64), (192, 16))
    assert chunks_of(257, 32) == ((0, 128), (128, 128), (256, 32))
    assert chunks_of(0, 16) == ()
    for tokens in range(1, 1500):
        tile = tile_of(tokens, 64, 128, 80, packed=False, pairs=False)
        rest = tokens % tile.step if tile.step else tokens
        chunks = chunks_of(rest, tile.quantum)
        assert sum(size for _, size in chunks) == -(-rest // tile.quantum) * tile.quantum


def test_channels_are_cut_into_powers_of_two_from_32_on():
    assert pieces_of(64) == ((0, 64),)
    assert pieces_of(80) == ((0, 64), (64, 32))
    assert pieces_of(96) == ((0, 64), (64, 32))
    assert pieces_of(16) == ((0, 32),)
    assert pieces_of(112) == ((0, 64), (64, 64))
    assert output_pieces_of(96, True) == ((0, 32), (32, 32), (64, 32))
    assert output_pieces_of(128, True) == ((0, 64), (64, 64))
    assert output_pieces_of(80, False) == ((0, 128),)


@pytest.mark.slow
def test_one_code_in_100_000_is_off_at_most():
    """1.3 million codes, ties and all."""
    wrong = total = 0
    for _ in range(4):
        found, _ = differing((*operands(13, 2, 197, 64), 0.125, 8, 8, 128, False))
        wrong, total = wrong + int(found.sum()), total + found.numel()
    assert total > 1_000_000
    assert wrong <= 1e-5 * total
