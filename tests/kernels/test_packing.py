"""The int4 layout."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qvit_kernels.packing import pack_int4, packed_size, unpack_int4

nibbles = st.integers(-8, 7)
matrices = st.one_of(st.integers(1, 9), st.integers(60, 70), st.just(193)).flatmap(
    lambda k: st.lists(st.lists(nibbles, min_size=k, max_size=k), min_size=1, max_size=4)
)


def int8(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.int8)


def test_bytes_are_where_the_drawing_puts_them():
    packed = pack_int4(int8([[1, 2, 3, -1, -8, 7]]))
    assert packed.tolist() == [[0xF1, 0x82, 0x73]]
    row = torch.zeros(200, dtype=torch.int8)
    row[[0, 32, 64, 127, 128 + 31, 192, 196]] = int8([1, 2, 3, 4, 5, 6, 7])
    places = {i: byte for i, byte in enumerate(pack_int4(row).tolist()) if byte}
    # the last block has 8 columns: 192 and 196 are the two halves of one byte
    assert places == {0: 0x21, 32: 0x03, 63: 0x40, 64 + 31: 0x05, 96: 0x76}


def test_odd_row_ends_with_a_zero_nibble():
    assert pack_int4(int8([1, 2, -3])).tolist() == [0xD1, 0x02]


@given(matrices)
def test_round_trip(values):
    codes = int8(values)
    packed = pack_int4(codes)
    assert packed.dtype == torch.uint8
    assert packed.shape == (codes.shape[0], packed_size(codes.shape[1]))
    assert torch.equal(unpack_int4(packed, codes.shape[1]), codes)


@given(matrices, st.integers(0, 15))
def test_padding_nibble_is_never_read(values, garbage):
    codes = int8(values)
    k = codes.shape[1]
    packed = pack_int4(codes)
    if k % 2:
        packed[:, -1] |= garbage << 4
    assert torch.equal(unpack_int4(packed, k), codes)


@given(matrices)
def test_strides_do_not_matter(values):
    codes = int8(values)
    k = codes.shape[1]
    spread = torch.zeros(codes.shape[0], 2 * k, dtype=torch.int8)
    spread[:, ::2] = codes
    transposed = codes.t().contiguous().t()
    packed = pack_int4(codes)
    assert torch.equal(pack_int4(spread[:, ::2]), packed)
    assert torch.equal(pack_int4(transposed), packed)
    assert torch.equal(unpack_int4(packed.t().contiguous().t(), k), codes)


def test_leading_dimensions_and_emptiness():
    codes = torch.randint(-8, 8, (2, 3, 5), dtype=torch.int8)
    assert torch.equal(unpack_int4(pack_int4(codes), 5), codes)
    assert pack_int4(torch.empty(0, 5, dtype=torch.int8)).shape == (0, 3)
    assert unpack_int4(torch.empty(4, 0, dtype=torch.uint8), 0).shape == (4, 0)


@pytest.mark.parametrize("bad", [8, -9, 127, -128])
def test_refuses_codes_that_four_bits_cannot_hold(bad):
    with pytest.raises(ValueError, match=r"-8\.\.7 to fit four bits, got .*" + str(bad)):
        pack_int4(int8([0, bad]))


def test_refuses_other_dtypes_and_lengths():
    with pytest.raises(TypeError, match=r"codes must be int8, got torch\.int32"):
        pack_int4(torch.zeros(4, dtype=torch.int32))
    with pytest.raises(TypeError, match=r"packed must be uint8, got torch\.int8"):
        unpack_int4(torch.zeros(4, dtype=torch.int8), 8)
    with pytest.raises(ValueError, match=r"rows of 7 codes are 4 bytes long, got shape \(2, 3\)"):
        unpack_int4(torch.zeros(2, 3, dtype=torch.uint8), 7)
    with pytest.raises(ValueError, match="scalar"):
        pack_int4(torch.tensor(1, dtype=torch.int8))
