"""The launches of the GEMM kernels: what each op asks for, made of its flat arguments.

`supports` says why shapes cannot run; a plan expects that it did not. Inputs may be strided or on the meta device,
where a launch can be compiled but not run.
"""

import math
from typing import Any

import torch
from torch import Tensor

from qvit_kernels import gemm, tiles
from qvit_kernels.accumulators import choose_form
from qvit_kernels.launching import Launch
from qvit_kernels.reference import code_range, steps_of
from qvit_kernels.split_memory import may_split, split_memory
from qvit_kernels.storage import empty_rows, empty_values, pitch_of
from qvit_kernels.tiles import Tile

# The widest group, transform or head that one tile holds.
_TILE_COLUMNS = 128

# A grid has 65,535 programs along y, of at least 16 rows each.
_MOST_ROWS = 65_535 * 16


def supports(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    multiplier: Tensor | None,
    more_rows: int = 0,
) -> str | None:
    """Why the kernels cannot take these operands of a product; None if they can. more_rows: of the result than of x."""
    k = x.shape[-1] * (2 if x.dtype == torch.uint8 else 1)
    groups = x_scale.shape[-1]
    rows = x.numel() // x.shape[-1] + more_rows
    if rows > _MOST_ROWS:
        return f"{rows} rows are more than {_MOST_ROWS}, which is what a grid holds"
    if groups > 1 and k // groups % 64:
        return f"its x scales are for {k // groups} columns each, which is not a multiple of 64"
    if x.dtype == torch.uint8 and (w.dtype != torch.uint8 or k % 64):
        return "packed x needs packed weights and a multiple of 64 columns"
    if multiplier is not None:
        width = k // multiplier.shape[-1]
        if w.dtype != torch.uint8:
            return "weights with multipliers must be packed"
        if width not in (16, 32) and width % 64 and multiplier.shape[-1] > 1:
            return f"its weights have groups of {width} columns, which is not 16, 32 or a multiple of 64"
        if k % 32:
            return f"weights with multipliers need a multiple of 32 columns, got {k}"
    return None


def supports_qkv(
    rows: int, heads: int, norm: list[Tensor], signs: Tensor | None, block: int
) -> str | None:
    """Why the kernel cannot make Q, K and V of this shape; None if it can. rows: of the weight."""
    width = rows // (3 * heads)
    if width > _TILE_COLUMNS:
        return f"heads of {width} channels are wider than {_TILE_COLUMNS}"
    if norm and signs is not None and block & (block - 1):
        return f"a transform of {block} channels is not a power of two"
    return None


def supports_transform(signs: Tensor | None, block: int) -> str | None:
    """Why the kernels cannot apply a block transform; None if they can."""
    if signs is not None and (block & (block - 1) or block > _TILE_COLUMNS):
        return f"a transform of {block} channels is not a power of two up to {_TILE_COLUMNS}"
    return None


def quantizes_in_tile(
    rows: int, signs: Tensor | None, block: int, group: int, packed: bool, *, static: bool = False
) -> bool:
    """Whether fc1 can quantize in its epilogue: else it is two launches, GELU to fp32 and a pass over rows.

    A tile must hold the columns that a dynamic scale is the maximum of; a static one is only looked up.
    """
    whole = static or (0 < group <= _TILE_COLUMNS and group & (group - 1) == 0)
    return whole and not (packed and rows % 64) and supports_transform(signs, block) is None


def plan_linear(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    multiplier: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    approximate: str | None = None,
    capability: int = 0,
    tile: Tile | None = None,
) -> tuple[Launch, Tensor]:
    """`composed.linear`, or `linear_residual` where there is a residual, or GELU of `linear` ("none" or "tanh").

    Returns the launch and its result, fp32 or of the residual's dtype, [..., N].
    """
    n = w.shape[0]
    product = _Product("linear", x, x_scale, w, w_scale, multiplier, bias, n, 1, capability, tile)
    dtype = torch.float32 if residual is None else residual.dtype
    y = torch.empty((*x.shape[:-1], n), dtype=dtype, device=x.device)
    columns, splits = math.ceil(n / product.tile.block_n), product.tile.splits
    sums, arrivals = (None, None) if splits == 1 else product.shared_memory(columns)
    arguments = product.arguments | {
        "sums_ptr": sums,
        "arrivals_ptr": arrivals,
        "SPLITS": splits,
        "residual_ptr": None if residual is None else residual.contiguous(),
        "y_ptr": y,
        "N": n,
        "GELU": approximate is not None,
        "TANH": approximate == "tanh",
    }
    return product.launch(gemm.linear_kernel, arguments, columns), y


def plan_embed(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    multiplier: Tensor | None,
    bias: Tensor | None,
    prefix: Tensor | None,
    positions: Tensor | None,
    dtype: torch.dtype,
    *,
    capability: int = 0,
    tile: Tile | None = None,
) -> tuple[Launch, Tensor]:
    """`composed.linear_embed`: tokens [B, n + P, N] of patches [B, P, K]."""
    n = w.shape[0]
    batch, patches, _ = x.shape
    before = 0 if prefix is None else prefix.shape[0]
    tokens = before + patches
    product = _Product("embed", x, x_scale, w, w_scale, multiplier, bias, n, 1, capability, tile)
    product.rows = batch * tokens  # of the result: those of x and the prefixes
    y = torch.empty((batch, tokens, n), dtype=dtype, device=x.device)
    arguments = product.arguments | {
        "prefix_ptr": None if prefix is None else prefix.contiguous(),
        "positions_ptr": None if positions is None else positions.contiguous(),
        "y_ptr": y,
        "M": product.rows,
        "T": tokens,
        "BEFORE": before,
        "SKIPPED": 0 if positions is None else tokens - positions.shape[0],
        "N": n,
    }
    return product.launch(gemm.embed_kernel, arguments, math.ceil(n / product.tile.block_n)), y


def plan_gelu_quantize(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    multiplier: Tensor | None,
    bias: Tensor | None,
    approximate: str,
    signs: Tensor | None,
    block: int,
    bits: int,
    group: int,
    packed: bool,
    static_scale: Tensor | None = None,
    prefix: int = 0,
    *,
    capability: int = 0,
    tile: Tile | None = None,
) -> tuple[Launch, tuple[Tensor, Tensor]]:
    """`composed.linear_gelu_quantize` in one launch, where `quantizes_in_tile`: codes [..., N], scale [..., N / group].

    Otherwise it takes two: `plan_linear` with `approximate`, then the kernel that quantizes rows.
    """
    n = w.shape[0]
    static = static_scale is not None
    unit = max(1 if static else group, block if signs is not None else 1, 64 if packed else 1)
    product = _Product("gelu", x, x_scale, w, w_scale, multiplier, bias, n, unit, capability, tile)
    codes, scale = empty_rows(x.shape[:-1], n, group, packed, x.device, static=static)
    arguments = product.arguments | _grid_arguments(signs, block, bits) | {
        "static_ptr": None if static_scale is None else static_scale.contiguous(),
        "codes_ptr": codes,
        "scale_ptr": scale,
        "N": n,
        "TANH": approximate == "tanh",
        "GROUP": 0 if static and group == n else group,
        "PACKED": packed,
        "PREFIX": prefix,
        "tokens": x.shape[-2] if prefix else None,
    }  # fmt: skip
    launch = product.launch(
        gemm.gelu_quantize_kernel, arguments, math.ceil(n / product.tile.block_n)
    )
    return launch, (codes, scale)


def plan_qkv(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    multiplier: Tensor | None,
    bias: Tensor | None,
    heads: int,
    bits: int,
    norm: list[Tensor],
    eps: float,
    signs: Tensor | None,
    block: int,
    *,
    capability: int = 0,
    tile: Tile | None = None,
) -> tuple[Launch, tuple[Tensor, ...]]:
    """`composed.linear_qkv`: q, its scale, k, its scale, v (tokens of a channel side by side), its scale."""
    batch, tokens, _ = x.shape
    width = w.shape[0] // (3 * heads)
    padded = 1 << (width - 1).bit_length()
    product = _Product(
        "qkv", x, x_scale, w, w_scale, multiplier, bias, 3 * heads * padded, padded, capability, tile
    )  # fmt: skip
    shape = (batch, heads, tokens)
    q, k = (torch.empty((*shape, width), dtype=torch.int8, device=x.device) for _ in range(2))
    v = empty_values((*shape, width), x.device)
    scales = [torch.empty((*shape, 1), dtype=torch.float32, device=x.device) for _ in range(3)]
    vectors = [vector.contiguous() for vector in norm] or [None] * 4
    arguments = product.arguments | _grid_arguments(signs if norm else None, block, bits) | {
        "q_norm_ptr": vectors[0], "q_shift_ptr": vectors[1],
        "k_norm_ptr": vectors[2], "k_shift_ptr": vectors[3],
        "q_ptr": q, "q_scale_ptr": scales[0],
        "k_ptr": k, "k_scale_ptr": scales[1],
        "v_ptr": v, "v_scale_ptr": scales[2],
        "T": tokens, "H": heads, "eps": eps,
        "v_pitch": pitch_of(tokens),
        "D": width, "DP": padded,
    }  # fmt: skip
    columns = 3 * math.ceil(heads * padded / product.tile.block_n)
    launch = product.launch(gemm.qkv_kernel, arguments, columns)
    return launch, (q, scales[0], k, scales[1], v, scales[2])


def _grid_arguments(signs: Tensor | None, block: int, bits: int) -> dict[str, Any]:
    """Of a block transform and of the grid of codes."""
    low, high = code_range(bits)
    return {
        "signs_ptr": None if signs is None else signs.contiguous(),
        "BLOCK": block,
        "NORM": 1.0 / math.sqrt(block) if signs is not None else 1.0,
        "STEPS_Q": steps_of(bits),
        "LOW": float(low),
        "HIGH": float(high),
    }


class _Product:
    """What every GEMM launch has: its operands, its tile and the constants of its main loop."""

    def __init__(
        self,
        kind: str,
        x: Tensor,
        x_scale: Tensor,
        w: Tensor,
        w_scale: Tensor,
        multiplier: Tensor | None,
        bias: Tensor | None,
        columns: int,
        unit_n: int,
        capability: int,
        tile: Tile | None,
    ) -> None:
        w4, x4 = w.dtype == torch.uint8, x.dtype == torch.uint8
        k = x.shape[-1] * (2 if x4 else 1)
        self.rows = x.numel() // x.shape[-1]
        groups = x_scale.shape[-1]
        unit_k = k // groups if groups > 1 else 0
        scale = x_scale.reshape(-1, groups).contiguous()
        card = None
        if not capability:
            capability, card = tiles.card_of(x.device)
        name = f"{kind}-w{4 if w4 else 8}a{4 if x4 else 8}"
        # sums of integers may be taken in parts; floats, which groups of x make of them, in one order only
        splittable = kind == "linear" and groups == 1 and may_split(x.device)
        self.tile = tile or tiles.choose(
            name, self.rows, columns, k, capability,
            unit_n=unit_n, unit_k=unit_k, may_split=splittable, card=card,
        )  # fmt: skip
        if not tiles.divides(self.tile, k, may_split=splittable):
            raise ValueError(f"{self.tile} cannot share {k} columns of {name}")
        self._device = x.device
        form = choose_form(
            capability, self.tile,
            w4=w4, over_rows=kind in ("gelu", "qkv"), groups=groups > 1,
        )  # fmt: skip
        self.arguments: dict[str, Any] = {
            "x_ptr": _bytes(x.reshape(self.rows, x.shape[-1])),
            "x_scale_ptr": scale,
            "w_ptr": _bytes(w) if multiplier is None else _aligned(_bytes(w)),
            "m_ptr": None if multiplier is None else multiplier.contiguous(),
            "w_scale_ptr": w_scale.contiguous(),
            "bias_ptr": None if bias is None else bias.contiguous(),
            "M": self.rows,
            "K": k,
            "GROUPS": groups,
            # one row of static scales serves all rows of x
            "x_scale_pitch": 0 if scale.shape[0] == 1 else groups,
            "STEPS": unit_k // self.tile.block_k,
            "EVEN": k % self.tile.block_k == 0,
            "SWAP": form.swap,
            "ROWS": form.rows,
            "SPREAD": form.spread,
            **_widths(multiplier, k, self.tile.block_k),
            "W4": w4,
            "X4": x4,
        }

    def shared_memory(self, columns: int) -> tuple[Tensor, Tensor]:
        """Where programs that share a tile meet; `columns` tiles along N."""
        tile = self.tile
        blocks = columns * math.ceil(self.rows / tile.block_m)
        return split_memory(blocks, tile.block_m * tile.block_n, self._device)

    def launch(self, kernel: Any, arguments: dict[str, Any], columns: int) -> Launch:
        """The launch with `columns` tiles along N."""
        tile = self.tile
        grid = (columns, math.ceil(self.rows / tile.block_m), tile.splits)
        blocks = {"BM": tile.block_m, "BN": tile.block_n, "BK": tile.block_k}
        return Launch(kernel, grid, arguments | blocks, tile.warps, tile.stages)


def _widths(multiplier: Tensor | None, k: int, block_k: int) -> dict[str, int]:
    """Columns that share a multiplier, and bytes of a tile's row that do."""
    if multiplier is None:
        return {"WIDTH": 0, "SPAN": 0}
    width = k // multiplier.shape[-1]
    whole = width == k or (width % block_k == 0 and k % block_k == 0)
    return {"WIDTH": width, "SPAN": block_k // 2 if whole else min(width, 32)}


def _bytes(codes: Tensor) -> Tensor:
    """Codes as contiguous int8: packed ones too, whose sign is their high nibble's."""
    return codes.contiguous().view(torch.int8)


def _aligned(codes: Tensor) -> Tensor:
    """Codes at a multiple of 16 bytes, for `gemm_int4.widen_times`; copied where they are not, as a view may."""
    return codes if codes.data_ptr() % 16 == 0 else codes.clone()
