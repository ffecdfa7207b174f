"""How attention is cut into programs: tokens of a program, keys of a row, channels of a head. No triton here."""

from typing import NamedTuple


class Tile(NamedTuple):
    """What a launch is free to choose.

    Attributes:
        block_m: Tokens of a program, a power of two from 16 on.
        warps: Warps of a program.
        stages: Triton's `num_stages`; only the loops over steps have any.
        step: Keys of a step where a row is computed in three passes, 0 where it stays in registers.
        quantum: Keys are rounded up to a multiple of it. 16, where every warp has 16 rows of its own; 8 for each warp,
            where the warps share the rows and have 8 of the columns each in turn.
    """

    block_m: int
    warps: int
    stages: int
    step: int
    quantum: int


# For any number of keys: three passes, so that nothing of a row is kept; and the same for programs that hold much else.
IN_PASSES = Tile(64, 4, 2, 64, 16)
IN_PASSES_OF_FEW_ROWS = Tile(16, 4, 2, 64, 32)

# Every warp has rows of its own: no exchange between warps, 14 instructions a logit. As far as what a program keeps in
# registers, keys + 2 * (group - width) + width, stays below a limit by capability.
_OWN_ROWS = Tile(64, 4, 1, 0, 16)
_OWN_LIMIT = {80: 400, 86: 400, 89: 400, 90: 400, 100: 256, 120: 272}

# The warps share the rows: half the registers a key or less, a third more instructions. By the keys that fit.
_SHARED_ROWS = ((288, Tile(32, 4, 1, 0, 32)), (640, Tile(32, 8, 1, 0, 64)))
# The same with less of everything else. Triton lets warps share rows where a product is wider than high: for 32 columns
# there must be 16 rows.
_SHARED_FEW_ROWS = ((608, Tile(16, 4, 1, 0, 32)), (1024, Tile(16, 8, 1, 0, 64)))
_MOST_SHARED = (1408, Tile(16, 8, 1, 0, 64))


def tile_of(
    tokens: int, width: int, group: int, capability: int, *, packed: bool, pairs: bool
) -> Tile:
    """The tile for rows of `tokens` keys, by what does not spill registers.

    width: channels of a head; group: output columns that share a scale; capability: 80, 86, ...; packed: whether the
    codes are; pairs: whether there is a bias or a mask.
    """
    if tokens <= 16:
        return Tile(16, 1, 1, 0, 16)
    if tokens <= 32:
        return Tile(32, 2, 1, 0, 16)
    keys = -(-tokens // 16) * 16
    kept = keys + 2 * (group - width) + width
    if width <= 64 and not pairs and kept <= _OWN_LIMIT.get(capability, 256):
        return _OWN_ROWS
    narrow = width <= 32 or (packed and width % 64 != 0)
    wide = width > 64 and group > width
    if wide or pairs:
        most = 288 if wide and packed else 608
        return _SHARED_FEW_ROWS[0][1] if tokens <= most else IN_PASSES_OF_FEW_ROWS
    limits = _SHARED_FEW_ROWS if narrow else _SHARED_ROWS + _SHARED_FEW_ROWS[1:]
    if width <= 64 and group <= 128 and capability != 120:
        limits += (_MOST_SHARED,)
    return next((tile for most, tile in limits if tokens <= most), IN_PASSES)


def chunks_of(keys: int, quantum: int, largest: int = 128) -> tuple[tuple[int, int], ...]:
    """`keys`, rounded up to a multiple of `quantum`, as (start, power of two), largest first.

    197 are 128 + 64 + 16 and not 256: a fifth fewer logits.
    """
    left = -(-keys // quantum) * quantum
    chunks, start = [], 0
    while left:
        size = min(largest, 1 << (left.bit_length() - 1))
        chunks.append((start, size))
        start, left = start + size, left - size
    return tuple(chunks)


def pieces_of(width: int) -> tuple[tuple[int, int], ...]:
    """Channels that a product sums over, as (first, power of two from 32 on), the last of them perhaps beyond `width`:
    80 are 64 + 32.
    """
    first = max(32, 1 << (width.bit_length() - 1))
    if first >= width:
        return ((0, first),)
    return (0, first), (first, max(32, 1 << (width - first - 1).bit_length()))


def output_pieces_of(width: int, packed: bool) -> tuple[tuple[int, int], ...]:
    """Channels that a product makes, likewise; where codes are packed, blocks of the int4 layout or halves of them.

    80 and 96 are 128, padded: pieces of 32 columns would not let warps share rows.
    """
    if packed:
        piece = 32 if width % 64 else 64
        return tuple((first, piece) for first in range(0, width, piece))
    return ((0, max(32, 1 << (width - 1).bit_length())),)
