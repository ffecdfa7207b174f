"""Codes of two to eight bits in a row of bytes, without gaps: how weights are stored.

Code i takes the bits i b to i b + b - 1 of the stream, in two's complement; bit j of the stream is bit j % 8 of byte
j // 8, so that numpy.unpackbits(bytes, bitorder="little") spreads it out:

    3 bits:   code     2  2  1  1  1  0  0  0  |  5  4  4  4  3  3  3  2  |  7  7  7  6  6  6  5  5
              byte     0 (bit 7 .. bit 0)      |  1                       |  2

A last byte that is not full ends in zeros, which are never read. This is no layout to compute with: kernels take two
codes of a byte, or one, see qvit_kernels.packing.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that so many codes take."""
    return (count * bits + 7) // 8


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Codes int8 of any shape, in the order of their memory, to uint8 [packed_bytes(numel, bits)].

    Raises TypeError for another dtype, ValueError for a code that does not fit the bits.
    """
    if codes.dtype != torch.int8:
        raise TypeError(f"codes must be int8, got {codes.dtype}")
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if codes.numel() and (codes.amin() < low or codes.amax() > high):
        raise ValueError(f"codes must lie in {low}..{high} to fit {bits} bits")
    stream = codes.reshape(-1).view(torch.uint8)
    if bits == 8:
        return stream.clone()
    together, size = _cycle(bits)
    fields = pad(stream, (0, -len(stream) % together)).view(-1, together) & (2**bits - 1)
    packed = torch.zeros(len(fields), size, dtype=torch.uint8, device=codes.device)
    for i in range(together):
        byte, shift = divmod(i * bits, 8)
        packed[:, byte] |= fields[:, i] << shift
        if shift + bits > 8:
            packed[:, byte + 1] |= fields[:, i] >> (8 - shift)
    return packed.view(-1)[: packed_bytes(codes.numel(), bits)].clone()


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """uint8 [packed_bytes(count, bits)] to codes int8 [count].

    Raises TypeError for another dtype, ValueError for another length.
    """
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed must be uint8, got {packed.dtype}")
    if tuple(packed.shape) != (packed_bytes(count, bits),):
        raise ValueError(
            f"{count} codes of {bits} bits are {packed_bytes(count, bits)} bytes, got {tuple(packed.shape)}"
        )
    if bits == 8:
        return packed.view(torch.int8).clone()
    together, size = _cycle(bits)
    cycles = pad(packed, (0, -len(packed) % size)).view(-1, size)
    fields = torch.empty(len(cycles), together, dtype=torch.uint8, device=packed.device)
    for i in range(together):
        byte, shift = divmod(i * bits, 8)
        field = cycles[:, byte] >> shift
        if shift + bits > 8:
            field |= cycles[:, byte + 1] << (8 - shift)
        fields[:, i] = field
    # to the top of the byte, and down again with the sign
    fields <<= 8 - bits
    return (fields.view(torch.int8).view(-1) >> (8 - bits))[:count]


def _cycle(bits: int) -> tuple[int, int]:
    """Codes after which the pattern of bytes begins anew, and the bytes that they fill."""
    together = 8 // math.gcd(8, bits)
    return together, together * bits // 8
