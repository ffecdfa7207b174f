"""Which way round a product is made, by what reads its accumulator and what the hardware's accumulators look like.

    mma.sync (sm_80, 86, 89, 120)  a thread holds 2 columns of every 8 of a row, and warps share the columns
    wgmma (sm_90)                  the same, but warps never share columns; the second operand lies in shared memory
    tcgen05 (sm_100)               a thread holds a whole row, or half of one

An epilogue over rows (a transform, a maximum of a group or head) is cheap where a thread holds neighbours of a row.
Unpacked int4 weights are cheap as the first operand, whose registers serve all tokens of the tile: 3 instructions a
matrix instruction on sm_80, against 5 as the second, 4 and 11 with multipliers; so the accumulator lies [BN, BM].
fc1's epilogue (GELU, Hadamard 32, quantize; 128 x 128, int8 weights) takes 60 instructions a value on sm_80 and 63 on
sm_90 as Triton lays it out, and 37 with `rows` and `spread`.
"""

from dataclasses import dataclass
from functools import cache

import triton

from qvit_kernels.tiles import Tile


@dataclass(frozen=True, slots=True)
class Form:
    """Constants of the main loop.

    Attributes:
        swap: The accumulator is [BN, BM]: w is the first operand.
        rows: Warps along M alone, by two dots a step, or by turning an accumulator that was swapped.
        spread: Columns in `gemm.column_order`, so that a thread has a quarter of a row in order.
    """

    swap: bool
    rows: bool
    spread: bool


def choose_form(capability: int, tile: Tile, *, w4: bool, over_rows: bool, groups: bool) -> Form:
    """The form for a tile. over_rows: the epilogue works on rows; groups: x has more than one scale a row."""
    # Fewer rows than 16 a warp: warps along M alone would compute the same rows again.
    over_rows = over_rows and tile.block_m >= 16 * tile.warps
    if capability == 100 and _has_tcgen05():
        return Form(swap=w4 and not over_rows, rows=False, spread=False)
    if capability == 90:
        return Form(swap=w4 and not over_rows, rows=False, spread=over_rows)
    # Products that feed each other have warps along the longer side; two of int8 take 64 columns.
    if not over_rows or tile.block_m < tile.block_n or tile.block_k < 64:
        return Form(swap=w4, rows=False, spread=False)
    if w4 and groups:  # sums of groups are floats, which no integer product turns
        return Form(swap=True, rows=False, spread=False)
    return Form(swap=w4, rows=True, spread=True)


@cache
def _has_tcgen05() -> bool:
    """Triton makes int8 products of tcgen05 from 3.8 on; before, they are mma.sync on sm_100 too."""
    return tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 8)
