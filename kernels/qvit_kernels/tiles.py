"""Which tile a GEMM takes: a card's measured table where there is one, else a rule from shapes.

A table is `tuned/<card>.json`, as the tuner writes it; none is shipped that nobody measured:

    {"card": "NVIDIA H200", "tiles": {"gelu-w8a8": {"1536x384": [
        {"m": 12608, "tile": {"block_m": 128, "block_n": 128, "block_k": 128, "warps": 8, "stages": 3}}]}}}

Kernel, then N x K, then rows of measured M: the nearest M wins, by ratio.
"""

import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

TABLES = Path(__file__).parent / "tuned"

# Streaming multiprocessors of the card that has most of them, by capability: a grid is to fill these.
_PROCESSORS = {80: 108, 86: 84, 89: 142, 90: 132, 100: 148, 120: 188}

# Largest first. 128 x 128 has 8 warps: 64 sums a thread leave room for an epilogue, 128 would spill.
_SHAPES = ((128, 128, 8), (64, 128, 4), (64, 64, 4), (32, 64, 4), (16, 64, 4))
# Steps along K from which on programs may share them, and programs that may.
_FEWEST_STEPS_TO_SPLIT = 8
_MOST_SPLITS = 8
# Where x has groups a thread holds an integer and a float for each value: 64 of both spilled 224 bytes with int4
# weights.
_GROUPED_SHAPES = ((64, 128, 8), (64, 64, 4), (32, 64, 4), (16, 64, 4))


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows, columns and depth of the block that one program makes, its warps and its pipeline stages; and how many
    programs share the columns of K for one block, each an equal number of steps (`gemm.linear_kernel` alone).
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    splits: int = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        for name in ("block_m", "block_n", "block_k", "warps"):
            value = getattr(self, name)
            if value & (value - 1):
                raise ValueError(f"{name} must be a power of two, got {value}")


def choose(
    kernel: str,
    m: int,
    n: int,
    k: int,
    capability: int,
    *,
    unit_n: int = 1,
    unit_k: int = 0,
    may_split: bool = False,
    card: str | None = None,
) -> Tile:
    """The tile for a product of [m, k] and [n, k].

    Args:
        kernel: "linear", "gelu" or "qkv", "-", "w8a8", "w4a8" or "w4a4".
        m: Rows of x.
        n: Rows of w.
        k: Columns of both.
        capability: 80, 86, ... as major * 10 + minor.
        unit_n: Neighbouring columns that one tile must hold, a power of two: a head, a group.
        unit_k: Columns of a group of x, which whole tiles must make up; 0 where there are no groups.
        may_split: Whether programs may share a sum.
        card: The name of the card, for its table.
    """
    if card is not None:
        tuned = _tuned(kernel, m, n, k, unit_n, unit_k, may_split, card)
        if tuned is not None:
            return tuned
    ruled = _by_rule(kernel, m, n, k, capability, unit_n, unit_k)
    return _split(ruled, m, n, k, capability) if may_split else ruled


def _by_rule(
    kernel: str, m: int, n: int, k: int, capability: int, unit_n: int, unit_k: int
) -> Tile:
    processors = _PROCESSORS.get(capability, 108)
    # Two loads a value in the epilogue of the embedding: of 128 columns it spilled 80 bytes on sm_90, 128 on sm_100.
    widest = 64 if kernel.startswith("embed") else 128
    shapes = [
        (block_m, max(min(block_n, widest), unit_n), warps)
        for block_m, block_n, warps in (_GROUPED_SHAPES if unit_k else _SHAPES)
        if block_m <= 16 or block_m < 2 * m
    ]
    block_m, block_n, warps = shapes[-1]
    for shape in shapes:
        if math.ceil(m / shape[0]) * math.ceil(n / shape[1]) >= processors:
            block_m, block_n, warps = shape
            break
    # Beside packed x 4 warps spilled 60 registers of GELU's epilogue on sm_80 (groups of 16, Triton 3.6).
    if (
        kernel == "gelu-w4a4"
        and capability not in (90, 100)
        and (block_m, block_n, warps) == (64, 128, 4)
    ):
        warps = 8
    # With three stages ptxas spills 8 bytes of the small packed tiles on sm_120 (Triton 3.9): at 72 registers of W4A4,
    # at 128 of 32 x 128 with GELU (W4A8).
    two = capability == 120 and block_m < 64 and (kernel.endswith("w4a4") or kernel == "gelu-w4a8")
    return Tile(block_m, block_n, _depth(kernel, k, unit_k), warps, stages=2 if two else 3)


def _split(tile: Tile, m: int, n: int, k: int, capability: int) -> Tile:
    """A larger tile whose sum some programs share, where the tiles would leave half of the card idle; else `tile`.

    fc2 of DeiT-S and one image: 96 programs of 3 steps for 78 of 12, which read half as many bytes in all. Fewer steps
    than the pipeline has stages would be all latency. Reasoned, not measured.
    """
    processors = _PROCESSORS.get(capability, 108)
    block_m = max(tile.block_m, min(64, 1 << max(m - 1, 15).bit_length()))
    blocks = math.ceil(m / block_m) * math.ceil(n / tile.block_n)
    steps = k // tile.block_k
    if k % tile.block_k or steps < _FEWEST_STEPS_TO_SPLIT or tile.block_n > 64 or block_m > 64:
        return tile
    for splits in range(min(_MOST_SPLITS, processors // max(blocks, 1)), 1, -1):
        if steps % splits == 0 and steps // splits >= tile.stages:
            return replace(tile, block_m=block_m, splits=splits)
    return tile


def _depth(kernel: str, k: int, unit_k: int) -> int:
    """128 columns a step: whole lines of memory, and the loop's own instructions are spent half as often as at 64."""
    width = unit_k or k
    if width % 128 == 0 or (not unit_k and width > 256):
        return 128
    return 32 if width <= 32 and kernel.endswith("w8a8") else 64


def divides(tile: Tile, k: int, *, may_split: bool) -> bool:
    """Whether a tile's programs, where they share the columns of K, have equal and whole steps."""
    return tile.splits == 1 or (may_split and k % (tile.splits * tile.block_k) == 0)


def _tuned(
    kernel: str, m: int, n: int, k: int, unit_n: int, unit_k: int, may_split: bool, card: str
) -> Tile | None:
    rows = [
        (measured, tile)
        for measured, tile in _table(_file_of(card)).get((kernel, n, k), ())
        if tile.block_n >= unit_n
        and (not unit_k or unit_k % tile.block_k == 0)
        and divides(tile, k, may_split=may_split)
    ]
    if not rows:
        return None
    return min(rows, key=lambda row: abs(math.log(row[0] / max(m, 1))))[1]


def _file_of(card: str) -> Path:
    return TABLES / f"{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}.json"


@lru_cache(maxsize=8)
def _table(file: Path) -> Mapping[tuple[str, int, int], list[tuple[int, Tile]]]:
    """A card's table, read once; empty where there is none."""
    if not file.is_file():
        return {}
    try:
        return _parse(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        warnings.warn(
            f"{file}: not a table of tiles ({type(error).__name__}: {error}); using the built-in rule",
            stacklevel=5,
        )
        return {}


def _parse(content: Mapping[str, Any]) -> dict[tuple[str, int, int], list[tuple[int, Tile]]]:
    table = {}
    for kernel, shapes in content["tiles"].items():
        for shape, rows in shapes.items():
            n, k = (int(size) for size in shape.split("x"))
            parsed = [(int(row["m"]), Tile(**row["tile"])) for row in rows]
            if any(measured < 1 for measured, _ in parsed):
                raise ValueError(f"m must be positive in {kernel} {shape}")
            table[kernel, n, k] = parsed
    return table


def card_of(device: torch.device) -> tuple[int, str | None]:
    """Capability and name of the card that tensors of a device are for; a processor, in Triton's interpreter, and the
    meta device stand for an A100, or for what `planning_for` says.
    """
    if device.type == "cuda":
        return describe_card(device.index or 0)
    return _planned_for.get(), None


# The capability that launches on the meta device are planned for.
_planned_for: ContextVar[int] = ContextVar("planned_for", default=80)


@contextmanager
def planning_for(capability: int) -> Iterator[None]:
    """Plan launches on the meta device for a card of this capability, in this thread, for the duration of a `with`
    block.
    """
    before = _planned_for.set(capability)
    try:
        yield
    finally:
        _planned_for.reset(before)


@lru_cache(maxsize=16)
def describe_card(index: int) -> tuple[int, str]:
    """Capability and name of a CUDA device."""
    major, minor = torch.cuda.get_device_capability(index)
    return major * 10 + minor, torch.cuda.get_device_name(index)
