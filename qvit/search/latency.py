"""Latency tables: what a pass takes by the bits of its layers, modelled for a card or measured on the machine at hand.

Kernels read weights of 4 bits, two a byte, or of 8, and inputs likewise, packed ones only beside packed weights. A
width between them is computed, and costs, as the next that has a kernel; inputs of eight bits alone have no 8-bit
prefix tokens and no groups of channels, which take time. Fewer bits need not be faster: where products and not bytes
take the time, unpacking comes on top.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qvit.models.config import ViTConfig
from qvit.models.plan import plan_scheme
from qvit.quant.schemes import ModelScheme
from qvit.recipe import MAX_BITS, Recipe
from qvit.search.allocation import WIDTHS, Space
from qvit.search.cards import find_card, model_seconds
from qvit.search.costs import CostTable, Pair, make_table
from qvit.search.stopwatch import measure_seconds

HERE = "here"
_PACKED = 4

# What a bit more costs of a pass, less than the sum of layers says: of demo_vit and ViT-Tiny on an L4 and an H200 up to
# 0.3 %, of two blocks, with many images, 1.9 %; where slices of heads are choices, that of most bits says how all are
# read, and it was 2.1 %.
_APART = 0.03


@dataclass(frozen=True, slots=True)
class Place:
    """Where latency counts. name: "here", or a card of `cards.CARDS`. batch: Images at a time. measures: Whether what
    is not known of here is measured; else tables raise UnmeasuredError.
    """

    name: str = HERE
    batch: int = 1
    measures: bool = True

    def __post_init__(self) -> None:
        if self.name != HERE:
            find_card(self.name)


def latency_table(config: ViTConfig, space: Space, place: Place) -> CostTable:
    """Seconds of a pass. A norm's time belongs to the Linear that it quantizes for.

    Other layers quantize for the next one as well, in their own launches, which take as long as the slowest of what
    they do: 24 random allocations of ViT-Tiny (L4, 64 images) were up to 1 % from the sums of their layers. Of a card,
    the table tells the whole, too. Here, times of layers vary by more than that from pass to pass, and their sum stands
    for the whole.
    """
    seconds = _clock(config, place)

    def measure(scheme: ModelScheme) -> tuple[float, Mapping[str, float]]:
        parts: dict[str, float] = {}
        for layer, value in seconds(scheme).items():
            owner = _owner(layer)
            parts[owner] = parts.get(owner, 0.0) + value
        return 0.0, parts

    def stand_in(pair: Pair) -> Pair:
        return with_kernel(pair, space.recipe)

    origin = "measured" if place.name == HERE else "modelled"
    table = make_table("latency", "s", config, space, measure, stand_in, origin)
    table = dataclasses.replace(table, slopes_of=_between_kernels(table.costs))
    if place.name == HERE:
        if not space.heads:
            return table
        # a kernel reads a weight by the most bits of its slices
        return dataclasses.replace(
            table, whole_of=lambda bits: table.total(space.widest(bits)), apart=_APART
        )

    @functools.cache
    def whole(bits: tuple[int, ...]) -> float:
        return math.fsum(seconds(plan_scheme(config, space.recipe_of(bits))).values())

    finer = _has_finer_inputs(space.recipe)

    def of_kernels(bits: Tensor | Sequence[int]) -> float:
        choices = zip(space.choices, space.widest(bits), strict=True)
        return whole(
            tuple(_as_fast(b, finer=finer and choice.kind == "A") for choice, b in choices)
        )

    return dataclasses.replace(table, whole_of=of_kernels, apart=_APART)


def with_kernel(pair: Pair, recipe: Recipe) -> Pair:
    """The next pair of bits that has a kernel of its own: W4A4, W4A8 or W8A8; A7 for A8 where a recipe has grids that
    only inputs of fewer than eight bits have.
    """
    weights, inputs = pair
    weights = _as_fast(weights, finer=False)
    if weights == _PACKED and inputs <= _PACKED:
        return weights, _PACKED
    return weights, _as_fast(max(inputs, MAX_BITS - 1), finer=_has_finer_inputs(recipe))


def _has_finer_inputs(recipe: Recipe) -> bool:
    """Whether inputs of fewer than eight bits have 8-bit prefix tokens or groups of channels, which eight do not."""
    return bool(recipe.activations.prefix_bits or recipe.activations.norm_group)


def _as_fast(bits: int, *, finer: bool) -> int:
    """Bits with which every launch of a model is the same. finer: Of inputs that have finer grids below eight bits."""
    if bits <= _PACKED:
        return _PACKED
    return max(bits, MAX_BITS - 1) if finer else MAX_BITS


def _clock(config: ViTConfig, place: Place) -> Callable[[ModelScheme], Mapping[str, float]]:
    if place.name == HERE:
        return lambda s: measure_seconds(config, s, place.batch, measures=place.measures)
    card = find_card(place.name)
    return lambda scheme: model_seconds(config, scheme, place.batch, card)


def _owner(layer: str) -> str:
    block, _, name = layer.rpartition(".")
    return {"norm": "head", "norm1": f"{block}.attn.qkv", "norm2": f"{block}.mlp.fc1"}.get(
        name, layer
    )


def _between_kernels(costs: Tensor) -> Tensor:
    """Costs [layers, 7, 7] on lines from four bits to eight, where there is a jump behind four."""
    widths = torch.tensor(WIDTHS, dtype=torch.float64)
    share = ((widths - _PACKED) / (MAX_BITS - _PACKED)).clamp(min=0)
    first = _PACKED - WIDTHS[0]
    low, high = costs[:, first : first + 1], costs[:, -1:]
    rows = low + share.view(-1, 1) * (high - low)
    low, high = rows[:, :, first : first + 1], rows[:, :, -1:]
    return low + share * (high - low)
