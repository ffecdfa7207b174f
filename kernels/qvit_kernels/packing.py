"""The int4 layout, two signed nibbles in a byte, "K-halves".

A row of K four-bit codes becomes H = ceil(K / 2) bytes. Byte j carries column j in its low nibble
and column j + H in its high nibble, each in two's complement:

    columns      0    1    2  ...  H-1  |   H   H+1  H+2 ... K-1   (0)
                 |    |    |        |       |    |    |       |     |
    byte         0    1    2  ...  H-1      0    1    2  ...       H-1
    nibble      low  low  low      low    high high high     high  high

    bits of byte j:   7 6 5 4   |   3 2 1 0
                      column j+H |  column j

An odd K leaves the last high nibble without a column: it is written as zero and never read. Halves
and not neighbours, because a kernel then unpacks a whole register of bytes into two contiguous
pieces of the row with a shift and two masks, and never interleaves.
"""

import torch
from torch import Tensor

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
    half = packed_size(codes.shape[-1])
    columns = codes.contiguous().view(torch.uint8)
    packed = columns[..., :half] & 0x0F
    packed[..., : codes.shape[-1] - half] |= columns[..., half:] << 4
    return packed


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
    half = packed.shape[-1]
    # An arithmetic right shift extends the sign; the low nibble is moved up first.
    signed = packed.contiguous().view(torch.int8)
    codes = torch.empty((*packed.shape[:-1], k), dtype=torch.int8, device=packed.device)
    codes[..., :half] = (signed << 4) >> 4
    codes[..., half:] = signed[..., : k - half] >> 4
    return codes
