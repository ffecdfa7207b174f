"""Memory for the results of the ops: shapes, dtypes and layouts, once for every backend and for fake tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qvit_kernels.packing import packed_size


def empty_rows(
    lead: Sequence[int],
    width: int,
    group: int,
    packed: bool,
    device: torch.device,
    *,
    static: bool = False,
) -> tuple[Tensor, Tensor]:
    """Codes and scales of quantized rows [*lead, width].

    Returns int8 [..., width] or packed uint8 [..., ceil(width / 2)], and fp32 [..., width / group] (group 0: [..., 1]).
    static: the scale is the caller's, and no output of an op may be one of its inputs: an empty one, fp32 [0].
    """
    size, dtype = (packed_size(width), torch.uint8) if packed else (width, torch.int8)
    codes = torch.empty((*lead, size), dtype=dtype, device=device)
    shape = (0,) if static else (*lead, width // group if group else 1)
    return codes, torch.empty(shape, dtype=torch.float32, device=device)


def empty_values(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Memory for the codes of V, [B, H, T, d], in which the tokens of a channel are neighbours.

    The product with the softmax numerators sums over tokens, and int8 tensor cores want what they sum over side by
    side. A channel takes a multiple of 32 bytes, so that every row of it can be loaded in 16-byte pieces.
    """
    batch, heads, tokens, width = shape
    memory = (batch, heads, width, pitch_of(tokens))
    return torch.empty(memory, dtype=torch.int8, device=device)[..., :tokens].transpose(-1, -2)


def pitch_of(tokens: int) -> int:
    """Bytes that a channel of V takes."""
    return (tokens + 31) // 32 * 32
