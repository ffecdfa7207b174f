"""The fused attention kernel: Q K^T in int8, exact softmax, P V in int8, and the codes of its output, in one launch.

A program takes BLOCK_M tokens of one image and the heads of one group of output columns, whose values share a scale.
The logits of a row stay in registers from Q K^T to the codes of P; rows too long for that are computed three times
(attention_rows.py). A scale over more columns than a program keeps takes two launches, with fp32 rows between them.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvit_kernels import ln_quant, reference, tiles
from qvit_kernels.arithmetic import (
    codes_of,
    narrow_rows,
    reciprocal,
    scale_of,
    signed_scale_of,
)
from qvit_kernels.attention_logits import load_pieces, zero_tile
from qvit_kernels.attention_rows import head_in_passes, head_in_registers
from qvit_kernels.attention_tiles import (
    Tile,
    chunks_of,
    output_pieces_of,
    pieces_of,
    tile_of,
)
from qvit_kernels.launching import Launch
from qvit_kernels.packing import BLOCK
from qvit_kernels.storage import empty_rows, empty_values, pitch_of

# Output columns that a program keeps until their scale is known.
_WIDEST_GROUP = 256
_WIDEST_HEAD = 128


@triton.jit
def in_one_byte(low, high):
    """Two int4 codes as `packing.pack_int4` stores them."""
    return ((low & 0x0F) | (high << 4)).to(tl.uint8, bitcast=True)


@triton.jit
def _scale_of_tiles(tiles, STEPS: tl.constexpr, SIGNED: tl.constexpr, narrow):
    """A scale for each row of tiles that lie side by side, of whatever widths."""
    if SIGNED:
        high = tl.max(tiles[0], 1)
        low = tl.min(tiles[0], 1)
        for i in tl.static_range(1, len(tiles)):
            high = tl.maximum(high, tl.max(tiles[i], 1))
            low = tl.minimum(low, tl.min(tiles[i], 1))
        return signed_scale_of(high, -low, 1.0, STEPS, narrow)
    else:
        amax = tl.max(tl.abs(tiles[0]), 1)
        for i in tl.static_range(1, len(tiles)):
            amax = tl.maximum(amax, tl.max(tl.abs(tiles[i]), 1))
        return scale_of(amax, STEPS)


@triton.jit
def store_codes(
    tiles, codes_ptr, scale_ptr, static_ptr, rows, tokens, columns, groups, group,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr,
    STEPS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, PACKED: tl.constexpr,
    PREFIX: tl.constexpr,
):  # fmt: skip
    """Quantizes the heads of a group, tiles of fp32 [BLOCK_M, columns], with one scale a row, and stores both; or with
    the static scale of the group. The first PREFIX rows have 8 bits.
    """
    CLAMP: tl.constexpr = HIGH < 127 or static_ptr is not None
    narrow = None
    if PREFIX:
        narrow = narrow_rows(rows, tokens, PREFIX)
    if static_ptr is not None:
        scale = tl.load(static_ptr + group + rows * 0)
    else:
        scale = _scale_of_tiles(tiles, STEPS, HIGH < 127, narrow)
        tl.store(scale_ptr + rows * groups + group, scale, mask=rows < tokens)
    inverse = reciprocal(scale)[:, None]
    if PACKED:
        at = codes_ptr + (rows[:, None] * columns + group * GROUP) // 2 + tl.arange(0, 32)[None, :]
        inside = (rows < tokens)[:, None]
        if PIECES[0][1] == 64:
            for i in tl.static_range(len(tiles)):
                codes = codes_of(tiles[i], inverse, LOW, HIGH, True)
                halves = tl.permute(tl.reshape(codes, (codes.shape[0], 2, 32)), (0, 2, 1))
                low, high = tl.split(halves)
                tl.store(at + 32 * i, in_one_byte(low, high), mask=inside)
        else:
            for i in tl.static_range(len(tiles) // 2):
                low = codes_of(tiles[2 * i], inverse, LOW, HIGH, True)
                high = codes_of(tiles[2 * i + 1], inverse, LOW, HIGH, True)
                tl.store(at + 32 * i, in_one_byte(low, high), mask=inside)
    else:
        for i in tl.static_range(len(tiles)):
            codes = codes_of(tiles[i], inverse, LOW, HIGH, CLAMP, narrow)
            store_piece(
                codes, codes_ptr + group * GROUP + i // len(PIECES) * WIDTH, rows, tokens, columns,
                WIDTH, PIECES[i % len(PIECES)][0],
            )  # fmt: skip


@triton.jit
def store_piece(x, at, rows, tokens, columns, WIDTH: tl.constexpr, FIRST: tl.constexpr):
    """Stores a tile of one head's output, without rows beyond `tokens` and columns beyond WIDTH."""
    channels = FIRST + tl.arange(0, x.shape[1])
    inside = (rows < tokens)[:, None]
    if FIRST + x.shape[1] > WIDTH:
        inside = inside & (channels < WIDTH)[None, :]
    tl.store(at + rows[:, None] * columns + channels[None, :], x, mask=inside)


@triton.jit
def behind(outputs, sums, scale):
    """`outputs` without those of the first head, and behind them those of another: fp32 [BLOCK_M, columns] each."""
    tiles = ()
    for i in tl.static_range(len(sums), len(outputs)):
        tiles = tiles + (outputs[i],)
    for i in tl.static_range(len(sums)):
        tiles = tiles + (sums[i].to(tl.float32) * scale[:, None],)
    return tiles


@triton.jit
def attention_kernel(
    q_ptr, q_scale_ptr, k_ptr, k_scale_ptr, v_ptr, v_scale_ptr, bias_ptr, mask_ptr,
    codes_ptr, scale_ptr, static_ptr,
    tokens, heads, softmax_scale, v_pitch,
    bias_images, bias_image_stride, bias_head_stride,
    mask_images, mask_image_stride, mask_head_stride,
    BLOCK_M: tl.constexpr, QMAX: tl.constexpr,
    STEP: tl.constexpr, WHOLE: tl.constexpr, CHUNKS: tl.constexpr,
    FOLD: tl.constexpr, BEYOND: tl.constexpr,
    WIDTH: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, HEADS: tl.constexpr,
    STEPS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, PACKED: tl.constexpr,
    PREFIX: tl.constexpr,
):  # fmt: skip
    """Programs: tiles of tokens, fastest, so that those of a head run together and find its K and V in the cache; then
    groups of HEADS heads; then images. STEP 0: rows in registers. STEPS 0: fp32 rows go to codes_ptr, no scale.
    """
    tiles = tl.cdiv(tokens, BLOCK_M)
    groups = heads // HEADS
    tile = tl.program_id(0) % tiles
    group = tl.program_id(0) // tiles % groups
    image = (tl.program_id(0) // tiles // groups).to(tl.int64)
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    seen = tl.minimum(rows, tokens - 1)
    outputs = ()
    for i in tl.static_range(HEADS * len(OUT)):
        outputs = outputs + (zero_tile(BLOCK_M, OUT[i % len(OUT)][1], tl.float32),)
    for i in tl.range(0, HEADS, loop_unroll_factor=1):
        head = group * HEADS + i
        zero = tl.minimum(heads - 1 - head, 0)
        first = (image * heads + head) * tokens
        q = load_pieces(q_ptr + first * WIDTH, seen + zero, WIDTH, IN)
        queries = (q, tl.load(q_scale_ptr + first + seen) * softmax_scale, seen)
        bias_at = image % bias_images * bias_image_stride + head * bias_head_stride
        mask_at = image % mask_images * mask_image_stride + head * mask_head_stride
        keys = (
            k_ptr + first * WIDTH, k_scale_ptr + first, bias_ptr, bias_at, mask_ptr, mask_at, zero,
        )  # fmt: skip
        channel = (image * heads + head) * WIDTH
        values = (v_ptr + channel * v_pitch, v_scale_ptr + first, v_pitch, zero)
        if STEP:
            sums, scale = head_in_passes(
                queries, keys, values, tokens, QMAX, STEP, WHOLE, CHUNKS, WIDTH, IN, OUT
            )
        else:
            sums, scale = head_in_registers(
                queries, keys, values, tokens, QMAX, CHUNKS, FOLD, BEYOND, WIDTH, IN, OUT
            )
        outputs = behind(outputs, sums, scale)
    rows += tl.minimum(tokens - 1 - tile * BLOCK_M, 0)
    columns = heads * WIDTH
    row = image * tokens
    if STEPS == 0:
        for j in tl.static_range(len(OUT)):
            at = codes_ptr + row * columns + group * WIDTH
            store_piece(outputs[j], at, rows, tokens, columns, WIDTH, OUT[j][0])
    else:
        at = codes_ptr + (row * columns // 2 if PACKED else row * columns)
        store_codes(
            outputs, at, scale_ptr + row * groups, static_ptr, rows, tokens, columns, groups, group,
            HEADS * WIDTH, WIDTH, OUT, STEPS, LOW, HIGH, PACKED, PREFIX,
        )  # fmt: skip


def supports(q: Tensor, group: int, packed: bool) -> str | None:
    """Why the kernel cannot attend with heads like q, [B, H, T, d], and such groups of its output; None if it can."""
    batch, heads, tokens, width = q.shape
    if width > _WIDEST_HEAD:
        return f"heads of {width} channels, more than {_WIDEST_HEAD}"
    if batch * heads * -(-tokens // 16) >= 2**31:
        return "more programs than a grid has"
    if q.numel() == 0 or _in_one_launch(heads * width, width, group, packed):
        return None
    rows = torch.empty((batch * tokens, heads * width), dtype=torch.float32, device="meta")
    return ln_quant.supports(rows, None, 1, group, packed)


def plan(
    q: Tensor,
    q_scale: Tensor,
    k: Tensor,
    k_scale: Tensor,
    v: Tensor,
    v_scale: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    softmax_scale: float,
    softmax_bits: int,
    bits: int,
    group: int,
    packed: bool,
    static_scale: Tensor | None = None,
    prefix: int = 0,
    *,
    tile: Tile | None = None,
    capability: int | None = None,
) -> tuple[tuple[Launch, ...], tuple[Tensor, Tensor]]:
    """The launches of `composed.attention` with these arguments, one after the other, and what they fill.

    tile: None for the one that `tile_of` names for the capability, which is that of the card if it is None. Returns
    codes int8 [B, T, H * d] or uint8 [B, T, H * d / 2], and scale fp32 [B, T, groups].
    """
    batch, heads, tokens, width = q.shape
    columns = heads * width
    group = group or columns
    static = static_scale is not None
    codes, scale = empty_rows((batch, tokens), columns, group, packed, q.device, static=static)
    if capability is None:
        capability, _ = tiles.card_of(q.device)
    whole = _in_one_launch(columns, width, group, packed)
    held = group if whole else width
    pairs = bias is not None or mask is not None
    tile = tile or tile_of(tokens, width, held, capability, packed=packed and whole, pairs=pairs)
    low, high = reference.code_range(bits)
    arguments = _operands(q, q_scale, k, k_scale, v, v_scale, bias, mask) | {
        "tokens": tokens,
        "heads": heads,
        "softmax_scale": softmax_scale * reference.LOG2_E,
        "QMAX": float(reference.softmax_qmax_of(softmax_bits)),
        "WIDTH": width,
        "IN": pieces_of(width),
        "OUT": output_pieces_of(width, packed and whole),
        "HEADS": held // width if width else 1,
        "LOW": low,
        "HIGH": high,
    }
    arguments |= _cuts(tokens, tile, pairs)
    programs = -(-tokens // tile.block_m) * (columns // held) * batch if codes.numel() else 0
    if whole:
        given = None if static_scale is None else static_scale.contiguous()
        arguments |= {"codes_ptr": codes, "scale_ptr": scale, "static_ptr": given, "PACKED": packed}
        arguments |= {"STEPS": reference.steps_of(bits), "PREFIX": prefix}
        return (_launch(programs, arguments, tile),), (codes, scale)
    rows = torch.empty((batch, tokens, columns), device=q.device)
    arguments |= {"codes_ptr": rows, "scale_ptr": None, "static_ptr": None, "PACKED": False}
    arguments |= {"STEPS": 0.0, "PREFIX": 0}
    last, _ = ln_quant.plan(
        rows, None, None, 0.0, None, 1, bits, group, packed, static_scale, prefix, (codes, scale)
    )
    return (_launch(programs, arguments, tile), last), (codes, scale)


def _in_one_launch(columns: int, width: int, group: int, packed: bool) -> bool:
    """Whether a program can hold a group of output columns: whole heads, and whole bytes of packed codes."""
    group = group or columns
    whole_bytes = not packed or (width % (BLOCK // 2) == 0 and group % BLOCK == 0)
    return group % width == 0 and group <= _WIDEST_GROUP and whole_bytes


def _launch(programs: int, arguments: dict[str, Any], tile: Tile) -> Launch:
    # Left to itself ptxas fits programs of 16 rows into 128 registers for sm_90, at the price of spills.
    options = {"maxnreg": 248} if tile.block_m == 16 and tile.warps <= 4 else {}
    return Launch(attention_kernel, (programs,), arguments, tile.warps, tile.stages, options)


def _cuts(tokens: int, tile: Tile, pairs: bool) -> dict[str, Any]:
    """Arguments that say how rows are cut."""
    whole = tokens // tile.step * tile.step if tile.step else 0
    return {
        "BLOCK_M": tile.block_m,
        "STEP": tile.step,
        "WHOLE": whole,
        "CHUNKS": chunks_of(tokens - whole, tile.quantum),
        "FOLD": 1 if pairs else tile.quantum,
        "BEYOND": tile.quantum > 32,
    }


def _operands(
    q: Tensor,
    q_scale: Tensor,
    k: Tensor,
    k_scale: Tensor,
    v: Tensor,
    v_scale: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
) -> dict[str, Any]:
    """Arguments for what the kernel reads, as it wants it to lie."""
    stored = _stored_values(v)
    found = {
        "q_ptr": q.contiguous(),
        "q_scale_ptr": q_scale.contiguous(),
        "k_ptr": k.contiguous(),
        "k_scale_ptr": k_scale.contiguous(),
        "v_ptr": stored,
        "v_scale_ptr": v_scale.contiguous(),
        "v_pitch": stored.stride(-1),
    }
    for name, pairs in (("bias", bias), ("mask", mask)):
        there = None if pairs is None else pairs.contiguous()
        found[f"{name}_ptr"] = (
            there if there is None or there.dtype != torch.bool else there.view(torch.uint8)
        )
        found[f"{name}_images"] = 1 if there is None else there.shape[0]
        found[f"{name}_image_stride"] = 0 if there is None else there.stride(0)
        found[f"{name}_head_stride"] = (
            0 if there is None or there.shape[1] == 1 else there.stride(1)
        )
    return found


def _stored_values(v: Tensor) -> Tensor:
    """The codes of V, [B, H, T, d], in the memory that `storage.empty_values` describes: as they are, or copied."""
    batch, heads, tokens, width = v.shape
    pitch = pitch_of(tokens)
    strides = (heads * width * pitch, width * pitch, 1, pitch)
    end = v.storage_offset() + batch * strides[0]
    if v.stride() == strides and v.data_ptr() % 16 == 0 and end <= v.untyped_storage().nbytes():
        return v
    return empty_values((batch, heads, tokens, width), v.device).copy_(v)
