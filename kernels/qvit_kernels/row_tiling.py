"""How rows are cut into tiles for the kernel that quantizes them. No triton here.

Tensors of Triton have sizes of powers of two and rows of ViTs have not (384 = 3 x 128), so a row is some chunks, and a
chunk some pieces of [rows, width], of which a lane holds 16 bytes of x each. The pieces of a chunk interleave: of
every `span` columns piece j holds the j-th part. So the last steps of a butterfly, the two nibbles of a byte and the
parts of a group meet in one lane, and only the steps between 16 bytes and a part cross lanes.
"""

import math
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from qvit_kernels.packing import BLOCK as PACKING_BLOCK

# Values of a row that a lane may hold. Of a row of 384 with a transform of 64: 24 take 34 instructions a value and 63
# registers, 48 take 27 and 95, 96 take 23 and 147 (sm_80).
_MOST_VALUES = 48

# With fewer values than this in all, half as many in a lane keep more lanes busy: 48 in each would be 682 warps, where
# an H200 has 528 schedulers. Reasoned, not measured.
_MANY_VALUES = 2**20


class Tiling(NamedTuple):
    """A row as `chunks` times `pieces` tiles of `width` columns; a lane holds `vector` neighbours of each."""

    width: int
    chunks: int
    pieces: int
    span: int
    vector: int

    @property
    def lanes(self) -> int:
        """Lanes that share a row."""
        return self.width // self.vector

    @property
    def values(self) -> int:
        """Values of a row that a lane holds."""
        return self.chunks * self.pieces * self.vector

    @property
    def warps(self) -> int:
        """Warps of a program.

        Triton loads a vector of fewer columns than a program has lanes straight into the lanes that want it, a longer
        one through shared memory with two barriers: hence eight warps for 128 columns and more.
        """
        return max(4 if self.width < 128 else 8, self.lanes // 32)

    @property
    def rows(self) -> int:
        """Rows of a program."""
        return 32 * self.warps // self.lanes


@lru_cache(maxsize=256)  # it is asked twice a launch, and takes as long as the rest of it
def choose_tiling(
    rows: int, k: int, itemsize: int, block: int, group: int, packed: bool
) -> Tiling | None:
    """The cheapest tiling by instructions a value; None if no program can hold such a row.

    itemsize: bytes of a value of x; block: columns of the transform, 1 for none; group: columns of a scale, a power of
    two, 0 for the row.
    """
    fitting = [
        tiling
        for tiling in _tilings(k, itemsize, block, packed)
        # Scales of groups stay in registers as long as the pieces they belong to: with 4 pieces and 8 warps, where
        # ptxas grants 128, Triton 3.6 spills on sm_100.
        if group == 0
        or (tiling.width * tiling.pieces % group == 0 and tiling.pieces * tiling.warps <= 16)
    ]
    most = _MOST_VALUES if rows * k >= _MANY_VALUES else _MOST_VALUES // 2
    for limit in (most, _MOST_VALUES):  # a long row may have no tiling of so few values
        within = [tiling for tiling in fitting if tiling.values <= limit]
        if within:
            return min(within, key=lambda tiling: _cost(tiling, k, block))
    return None


def _tilings(k: int, itemsize: int, block: int, packed: bool) -> list[Tiling]:
    """All tilings whose spans hold whole blocks of the transform and of the int4 layout."""
    found = []
    least = max(block, PACKING_BLOCK if packed else 1)
    # 16 bytes of x for a lane; of a 16-bit x also 8, where a row fits its lanes better so.
    for vector, lanes in product((4, 8) if itemsize == 2 else (4,), (1 << i for i in range(9))):
        width = lanes * vector
        span = max(least, vector) if least > 1 else width
        for pieces in (1, 2, 4, 8) if least > 1 else (1,):
            part = span // pieces
            if vector <= part <= min(width, PACKING_BLOCK // 2 if packed else width):
                chunks = math.ceil(k / (width * pieces))
                found.append(Tiling(width, chunks, pieces, span, vector))
    return found


def _cost(tiling: Tiling, k: int, block: int) -> float:
    """Instructions a value of the row, roughly, as counted of compiled kernels."""
    part = tiling.span // tiling.pieces
    crossing = max(1, min(block, part) // tiling.vector).bit_length() - 1
    padded = tiling.chunks * tiling.pieces * tiling.width / k
    moves = 3 / tiling.vector + (6 if tiling.width >= 256 else 0)
    return padded * (16 + 2 * crossing + 170 / tiling.values + moves)
