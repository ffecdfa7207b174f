"""What launches take of a card: programs, matrix products, instructions counted of compiled kernels, bytes.

`counted/sm_<capability>.json` holds what the shipped launches compile to, distilled from benchmarks/results/static by
benchmarks/distil_counts.py: for a kind of launch and its tile, warp instructions for each multiply-accumulate of its
main loop, and for each value that comes out. Imports no Triton.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from qvit_kernels.launching import Launch

COUNTED = Path(__file__).parent / "counted"


@dataclass(frozen=True, slots=True)
class Work:
    """One launch.

    Attributes:
        programs: That share it.
        macs: Multiply-accumulates of its matrix products, those of padding among them.
        instructions: Of warps, over all programs.
        bytes: Of all tensors it is given, each once.
    """

    programs: int
    macs: float
    instructions: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Extent:
    """How much a launch computes, of all programs: multiply-accumulates of products, and values that come out."""

    macs: float
    values: float


def extent_of(launch: Launch) -> Extent:
    """Of a launch's grid and tile, padding included."""
    own = launch.arguments
    programs = math.prod(launch.grid)
    if "BM" in own:  # a product: splits share the steps along K
        splits = own.get("SPLITS", 1)
        values = programs / splits * own["BM"] * own["BN"]
        return Extent(values * own["BK"] * math.ceil(own["K"] / own["BK"]), values)
    if "BLOCK_M" in own:  # attention: logits are its values
        keys = sum(size for _, size in own["CHUNKS"]) or own["tokens"]
        logits = programs * own["HEADS"] * own["BLOCK_M"] * keys
        return Extent(2 * logits * own["WIDTH"], logits)
    return Extent(0.0, programs * own["ROWS"] * own.get("K", own["SPAN"]))


def kind_of(launch: Launch) -> tuple[str, ...]:
    """What decides how many instructions a value takes, most important first: kernel, operands, tile."""
    own = launch.arguments
    name = getattr(launch.kernel, "fn", launch.kernel).__name__
    if "BM" in own:
        operands = f"{'w4' if own['W4'] else 'w8'}{'a4' if own['X4'] else 'a8'}"
        grouped = "multipliers" if own["WIDTH"] else "", "groups" if own["GROUPS"] > 1 else ""
        ending = f"hadamard{own.get('BLOCK', 0)}" + ("-gelu" if own.get("GELU") else "")
        tile = "x".join(str(own[side]) for side in ("BM", "BN", "BK"))
        return (name, operands, *grouped, ending, tile, str(launch.warps))
    if "BLOCK_M" in own:
        return (
            name,
            "bias" if own["bias_ptr"] is not None else "",
            str(own["WIDTH"]),
            str(own["BLOCK_M"]),
        )
    packed = "packed" if own.get("PACKED") else ""
    return (name, packed, f"hadamard{own.get('BLOCK', 1)}", str(own["ROWS"]), str(launch.warps))


def work_of(launch: Launch, capability: int) -> Work:
    """What a launch takes of a card of this capability. Where its kind was not counted, the nearest one of its kernel
    stands for it. Raises LookupError where nothing of the kernel or the capability was.
    """
    extent = extent_of(launch)
    per_mac, per_value = _counted(capability).nearest(kind_of(launch))
    moved = {
        id(t): t.numel() * t.element_size()
        for t in launch.arguments.values()
        if isinstance(t, Tensor)
    }
    return Work(
        programs=math.prod(launch.grid),
        macs=extent.macs,
        instructions=per_mac * extent.macs + per_value * extent.values,
        bytes=sum(moved.values()),
    )


class _Counts:
    """Warp instructions for each multiply-accumulate and each value, by kind of launch."""

    def __init__(self, rows: Mapping[str, Any]) -> None:
        self._known = {
            tuple(kind.split("/")): (float(a), float(b)) for kind, (a, b) in rows.items()
        }

    def nearest(self, kind: tuple[str, ...]) -> tuple[float, float]:
        alike = [known for known in self._known if known[0] == kind[0]]
        if not alike:
            raise LookupError(f"no launch of {kind[0]} was counted")

        def matching(known: tuple[str, ...]) -> list[bool]:
            return [a == b for a, b in zip(known, kind, strict=True)]

        return self._known[max(alike, key=matching)]


@lru_cache(maxsize=8)
def _counted(capability: int) -> _Counts:
    path = COUNTED / f"sm_{capability}.json"
    if not path.is_file():
        raise LookupError(f"launches were not counted for compute capability {capability / 10}")
    return _Counts(json.loads(path.read_text(encoding="utf-8"))["instructions"])
