"""Codes without gaps: every width, any number of them, garbage where no code is."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qvit.deployment.bit_packing import pack_bits, packed_bytes, unpack_bits

BITS = st.integers(2, 8)


@st.composite
def packed_codes(draw: st.DrawFn) -> tuple[Tensor, int]:
    bits = draw(BITS)
    code = st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return torch.tensor(draw(st.lists(code, max_size=70)), dtype=torch.int8), bits


def test_bits_are_where_the_drawing_puts_them():
    codes = torch.tensor([1, -1, 2, -4, 3, 0, -2, -3], dtype=torch.int8)
    packed = pack_bits(codes, 3)
    assert packed.tolist() == [0b10_111_001, 0b0_011_100_0, 0b101_110_00]


@given(packed_codes())
def test_round_trip(example):
    codes, bits = example
    packed = pack_bits(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (packed_bytes(len(codes), bits),) == (-(-len(codes) * bits // 8),)
    assert torch.equal(unpack_bits(packed, bits, len(codes)), codes)


@given(packed_codes())
def test_another_reader_finds_the_codes(example):
    codes, bits = example
    spread = np.unpackbits(pack_bits(codes, bits).numpy(), bitorder="little")
    fields = spread[: len(codes) * bits].reshape(len(codes), bits).astype(int)
    values = fields @ 2 ** np.arange(bits)
    assert np.where(values >= 2 ** (bits - 1), values - 2**bits, values).tolist() == codes.tolist()
    assert not spread[len(codes) * bits :].any()


@given(packed_codes(), st.integers(0, 255))
def test_padding_is_never_read(example, garbage):
    codes, bits = example
    packed = pack_bits(codes, bits)
    used = len(codes) * bits % 8
    if used:
        packed[-1] |= garbage >> used << used
    assert torch.equal(unpack_bits(packed, bits, len(codes)), codes)


@given(BITS, st.integers(1, 9), st.integers(1, 9))
def test_rows_follow_each_other_whatever_the_strides(bits, n, k):
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (k, n), dtype=torch.int8).t()
    assert torch.equal(pack_bits(codes, bits), pack_bits(codes.flatten(), bits))


def test_bytes_are_new_memory():
    codes = torch.tensor([1, 2, 3, 4], dtype=torch.int8)
    for bits in (4, 8):
        packed = pack_bits(codes, bits)
        back = unpack_bits(packed, bits, 4)
        packed.zero_()
        assert back.tolist() == codes.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(("bits", "code"), [(2, 2), (3, -5), (4, 8), (7, 64)])
def test_codes_that_do_not_fit(bits, code):
    with pytest.raises(ValueError, match=f"to fit {bits} bits"):
        pack_bits(torch.tensor([0, code], dtype=torch.int8), bits)


def test_wrong_kinds_and_lengths():
    with pytest.raises(TypeError, match="int8"):
        pack_bits(torch.zeros(4), 4)
    with pytest.raises(TypeError, match="uint8"):
        unpack_bits(torch.zeros(4), 4, 8)
    with pytest.raises(ValueError, match="9 codes of 3 bits are 4 bytes"):
        unpack_bits(torch.zeros(3, dtype=torch.uint8), 3, 9)
