"""The int4 layout: two signed nibbles in a byte, halves of blocks of 64 columns.

A block of 64 four-bit codes becomes 32 bytes. Byte j of it carries column j in its low nibble and column j + 32 in its
high nibble, each in two's complement:

    columns      0    1    2  ...  31   |   32   33   34 ...  63      of a block
                 |    |    |        |        |    |    |       |
    byte         0    1    2  ...  31        0    1    2  ...  31
    nibble      low  low  low      low     high high high     high

    bits of byte j:   7 6 5 4   |   3 2 1 0
                      column j+32 |  column j

A last block of r < 64 columns is split alike at h = ceil(r / 2), and takes h bytes; an odd r leaves the last high
nibble without a column: it is written as zero and never read. Halves and not neighbours, because a kernel then unpacks
a register of bytes into two contiguous pieces of a row with a shift and two masks, and never interleaves. Blocks and
not whole rows, because a kernel that makes 64 or 128 columns of a row at a time can then pack what it has. 32 columns
are what one int8 tensor core instruction takes of K.
"""

import torch
from torch import Tensor

BLOCK = 64
INT4_MIN = -8
INT4_MAX = 7


def packed_size(k: int) -> int:
    """Bytes that a row of `k` int4 codes takes."""
    return (k + 1) // 2


def pack_int4(codes: Tensor) -> Tensor:
    """Pack int8 codes [..., K] of -8..7 into uint8 [..., ceil(K / 2)].

    Raises TypeError for another dtype, ValueError for a code that four bits cannot hold or for a
    scalar.
    """
    if codes.dtype != torch.int8:
        raise TypeError(f"codes must be int8, got {codes.dtype}")
    if codes.dim() == 0:
        raise ValueError("codes must have at least one dimension, got a scalar")
    if codes.numel():
        low, high = (int(v) for v in codes.aminmax())
        if low < INT4_MIN or high > INT4_MAX:
            raise ValueError(
                f"codes must lie in {INT4_MIN}..{INT4_MAX} to fit four bits, got {low}..{high}"
            )
    k = codes.shape[-1]
    whole = k - k % BLOCK
    rows = codes.contiguous().view(torch.uint8)
    blocks = rows[..., :whole].unflatten(-1, (-1, 2, BLOCK // 2))
    packed = (blocks[..., 0, :] & 0x0F) | (blocks[..., 1, :] << 4)
    half = (k - whole + 1) // 2
    last = rows[..., whole : whole + half] & 0x0F
    last[..., : k - whole - half] |= rows[..., whole + half :] << 4
    return torch.cat((packed.flatten(-2), last), dim=-1)


def unpack_int4(packed: Tensor, k: int) -> Tensor:
    """Unpack uint8 [..., ceil(k / 2)] into int8 codes [..., k].

    Raises TypeError for another dtype, ValueError if the row length does not belong to `k`.
    """
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed must be uint8, got {packed.dtype}")
    if packed.dim() == 0 or k < 0 or packed.shape[-1] != packed_size(k):
        raise ValueError(
            f"packed rows of {k} codes are {packed_size(k)} bytes long, "
            f"got shape {tuple(packed.shape)}"
        )
    # An arithmetic right shift extends the sign; the low nibble is moved up first.
    signed = packed.contiguous().view(torch.int8)
    low, high = (signed << 4) >> 4, signed >> 4
    whole = k // BLOCK * (BLOCK // 2)
    blocks = torch.stack([x[..., :whole].unflatten(-1, (-1, BLOCK // 2)) for x in (low, high)], -2)
    rest = k - k // BLOCK * BLOCK
    last = (low[..., whole:], high[..., whole : whole + rest // 2])
    return torch.cat((blocks.flatten(-3), *last), dim=-1)
