"""Cost tables: what each layer costs at its bits, so that an allocation's cost is a sum of look-ups.

BitOps are such a sum. The bytes of a file are but for the header, whose offsets have digits, and for weights of heads,
whose groups are those of the layer; a modelled latency is but for what one layer does for the next. Then a table tells
the whole, too, which is what counts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from qvit.deployment import storage
from qvit.models.config import ViTConfig
from qvit.models.dense import IntegerDense
from qvit.models.plan import plan_scheme
from qvit.models.vit import ViT
from qvit.quant.schemes import ModelScheme
from qvit.search.allocation import WIDTHS, Space
from qvit.search.bitops import count_bitops
from qvit.search.filesize import file_sizes


@dataclass(frozen=True, slots=True)
class CostTable:
    """Costs of the allocations of a space.

    Attributes:
        name: "size", "bitops" or "latency"; unit: "B", "BitOps" or "s".
        fixed: What no choice changes. count: Of choices in an allocation.
        places: int64 [layers, 2], where in an allocation the bits of each layer's weights and input are; one behind its
            end where they are settled. Where heads have bits of their own, each slice of the weights counts as a layer,
            and they share an input.
        costs: fp64 [layers, 7, 7], by weight bits and input bits 2 to 8; rows alike where weights are settled, columns
            where inputs are.
        slopes_of: The same, of which slopes are taken: where costs jump between bits that have kernels, a line from one
            to the next. None: costs.
        origin: How the costs are known, "modelled" or "measured"; "" where they are exact.
        whole_of: The cost of an allocation where that is not quite the sum of its layers'. None: the sum.
        apart: By which share of the cost a bit more, or one moved, may change the whole and the sum differently.
    """

    name: str
    unit: str
    fixed: float
    count: int
    places: Tensor
    costs: Tensor
    slopes_of: Tensor | None = None
    origin: str = ""
    whole_of: Callable[[Tensor | Sequence[int]], float] | None = None
    apart: float = 1e-9  # rounding

    def total(self, bits: Tensor | Sequence[int]) -> float:
        """What the layers of an allocation add up to: what searches go by, and not always what it costs."""
        layers, rows, columns = self._at(bits)
        return self.fixed + float(self.costs[layers, rows, columns].sum())

    def whole(self, bits: Tensor | Sequence[int]) -> float:
        """What an allocation costs."""
        return self.total(bits) if self.whole_of is None else self.whole_of(bits)

    def slopes(self, bits: Tensor | Sequence[int]) -> Tensor:
        """How the cost changes with each choice around an allocation, from a bit less to a bit more where both exist, a
        bit: fp64 [choices].
        """
        costs = self.costs if self.slopes_of is None else self.slopes_of
        layers, rows, columns = self._at(bits)
        found = torch.zeros(len(bits) + 1, dtype=torch.float64)
        low, high = (rows - 1).clamp(min=0), (rows + 1).clamp(max=_LAST)
        change = costs[layers, high, columns] - costs[layers, low, columns]
        found.index_add_(0, self.places[:, 0], change / (high - low))
        low, high = (columns - 1).clamp(min=0), (columns + 1).clamp(max=_LAST)
        change = costs[layers, rows, high] - costs[layers, rows, low]
        found.index_add_(0, self.places[:, 1], change / (high - low))
        return found[:-1]

    def steps(self, bits: Tensor | Sequence[int], by: int = 1) -> Tensor:
        """What so many bits more (or fewer) of each choice would cost: fp64 [choices]; nothing where there are none."""
        layers, rows, columns = self._at(bits)
        now = self.costs[layers, rows, columns]
        found = torch.zeros(len(bits) + 1, dtype=torch.float64)
        more = self.costs[layers, (rows + by).clamp(0, _LAST), columns]
        found.index_add_(0, self.places[:, 0], more - now)
        more = self.costs[layers, rows, (columns + by).clamp(0, _LAST)]
        found.index_add_(0, self.places[:, 1], more - now)
        return found[:-1]

    def moves(self, bits: Tensor | Sequence[int]) -> Tensor:
        """What an allocation would cost more if one layer had other bits: fp64 [layers, 7, 7]. Layers with which it
        shares its input have the other bits of that, too.
        """
        layers, rows, columns = self._at(bits)
        moved = self.costs - self.costs[layers, rows, columns].view(-1, 1, 1)
        by_input = self.costs[layers, rows] - self.costs[layers, rows, columns].unsqueeze(1)
        return moved + (self._of_input(by_input) - by_input).unsqueeze(1)

    def _of_input(self, by_input: Tensor) -> Tensor:
        """Sums over all layers that share an input, of what they have by its bits: fp64 [layers, 7]. One whose bits are
        settled is shared with none.
        """
        summed = by_input.new_zeros(self.count + 1, by_input.shape[1])
        summed.index_add_(0, self.places[:, 1], by_input)
        open_ = (self.places[:, 1] < self.count).unsqueeze(1)
        return torch.where(open_, summed[self.places[:, 1]], by_input)

    def cheapest(self, costs: Tensor) -> Tensor:
        """The cells of the least sum of some costs [layers, 7, 7], one of every layer: int64 [layers]."""
        columns = self._of_input(costs.amin(1)).argmin(1)
        rows = costs.gather(2, columns.view(-1, 1, 1).expand(-1, costs.shape[1], 1)).argmin(1)
        return rows.squeeze(1) * len(WIDTHS) + columns

    def moved(self, bits: Tensor, layer: int, cell: int) -> Tensor:
        """An allocation in which a layer has the bits of a cell."""
        found = torch.cat([bits, bits.new_zeros(1)])
        found[self.places[layer]] = torch.tensor(divmod(cell, len(WIDTHS))) + WIDTHS[0]
        return found[:-1]

    def cells_of(self, bits: Tensor | Sequence[int]) -> Tensor:
        """Where in the flat [7, 7] of each layer an allocation is: int64 [layers]."""
        _, rows, columns = self._at(bits)
        return rows * len(WIDTHS) + columns

    def bits_of(self, cells: Tensor) -> Tensor:
        """The allocation whose layers are there: int64 [choices]."""
        found = torch.zeros(self.count + 1, dtype=torch.int64)
        both = torch.stack([cells // len(WIDTHS), cells % len(WIDTHS)], 1) + WIDTHS[0]
        found[self.places] = both
        return found[:-1]

    def distances(self, wanted: Tensor) -> Tensor:
        """Squared distances of the bits of each layer from real-valued ones: fp64 [layers, 49]."""
        widths = torch.tensor(WIDTHS, dtype=torch.float64)
        known = torch.cat([wanted.double(), wanted.new_zeros(1).double()])[self.places]
        apart = (widths - known.unsqueeze(2)).square()  # [layers, 2, 7]
        apart = apart * (self.places < len(wanted)).unsqueeze(2)
        return (apart[:, 0].unsqueeze(2) + apart[:, 1].unsqueeze(1)).flatten(1)

    def say(self, amount: float, *, up: bool = False) -> str:
        """An amount with its unit: "8,000,000 B", "0.612 ms"; up: never rounded down, of a limit to ask for."""
        return say_amount(amount, self.unit, up=up)

    def _at(self, bits: Tensor | Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Where in the costs an allocation is."""
        known = torch.as_tensor(bits, dtype=torch.int64)
        padded = torch.cat([known, known.new_tensor([WIDTHS[0]])]) - WIDTHS[0]
        rows, columns = padded[self.places].unbind(1)
        return torch.arange(len(rows)), rows, columns

    @property
    def smallest(self) -> float:
        """What the allocation costs whose layers add up to the least.

        No other costs less where the whole is the sum, nor as a file. Of a modelled pass that is not proven: no other
        bits of a choice, tried one after the other, made demo_vit faster on an L4 or an H200.
        """
        return self.whole(self.bits_of(self.cheapest(self.costs)))

    @property
    def largest(self) -> float:
        """What that costs whose layers add up to the most."""
        return self.whole(self.bits_of(self.cheapest(-self.costs)))


_LAST = len(WIDTHS) - 1


def say_amount(amount: float, unit: str, *, up: bool = False) -> str:
    """As `CostTable.say` does, of a unit that a table has."""
    digits, name = (3, "ms") if unit == "s" else (0, unit)
    shown = 1000 * amount if unit == "s" else amount
    if up:
        shown = math.ceil(shown * 10**digits) / 10**digits
    return f"{shown:,.{digits}f} {name}"


Measure = Callable[[ModelScheme], tuple[float, Mapping[str, float]]]
Pair = tuple[int, int]  # bits of weights and of inputs

# Of a file: digits of offsets; of one with weights of heads, groups that the layer shares (1.4e-4 of demo_vit).
_APART = 3e-4


def size_table(config: ViTConfig, space: Space) -> CostTable:
    """Bytes of model.safetensors."""

    def measure(scheme: ModelScheme) -> tuple[float, Mapping[str, float]]:
        with torch.device("meta"):
            model = ViT(config, scheme, IntegerDense)
        parts = storage.layer_bytes(model)
        return parts.pop(""), dict(parts)

    # inputs are quantized when they come: no file holds anything of them
    table = make_table("size", "B", config, space, measure, lambda pair: (pair[0], WIDTHS[0]))
    return replace(table, whole_of=file_sizes(config, space), apart=_APART)


def bitops_table(config: ViTConfig, space: Space) -> CostTable:
    """BitOps of an image."""

    def measure(scheme: ModelScheme) -> tuple[float, Mapping[str, float]]:
        return 0.0, dict(count_bitops(config, scheme))

    return make_table("bitops", "BitOps", config, space, measure, lambda pair: pair)


def make_table(
    name: str,
    unit: str,
    config: ViTConfig,
    space: Space,
    measure: Measure,
    stand_in: Callable[[Pair], Pair],
    origin: str = "",
) -> CostTable:
    """From what `measure` says of schemes in which all layers have the same bits: the rest, and each layer's part.

    stand_in: The bits that cost as much as some bits do; the fewer there are, the less is measured.
    """
    places: dict[str, dict[str, list[int]]] = {}
    for place, choice in enumerate(space.choices):
        places.setdefault(choice.layer, {"W": [], "A": []})[choice.kind].append(place)
    known: dict[Pair, tuple[Tensor, float]] = {}
    for pair in dict.fromkeys(stand_in(pair) for pair in product(WIDTHS, WIDTHS)):
        bits = [pair["WA".index(choice.kind)] for choice in space.choices]
        rest, parts = measure(plan_scheme(config, space.recipe_of(bits)))
        own = torch.tensor([parts.get(layer, 0.0) for layer in places], dtype=torch.float64)
        others = sum(cost for layer, cost in parts.items() if layer not in places)
        known[pair] = own, rest + others
    cells = [known[stand_in(pair)] for pair in product(WIDTHS, WIDTHS)]
    costs = torch.stack([own for own, _ in cells], 1).view(-1, len(WIDTHS), len(WIDTHS))
    fixed = max(rest for _, rest in cells)
    count = len(space.choices)
    slices = torch.tensor([len(kinds["W"]) or 1 for kinds in places.values()])
    where = [
        [weights, (kinds["A"] or [count])[0]]
        for kinds in places.values()
        for weights in kinds["W"] or [count]
    ]
    # all slices of a layer are as large
    costs = (costs / slices.view(-1, 1, 1)).repeat_interleave(slices, 0)
    places_of = torch.tensor(where).view(-1, 2)
    return CostTable(name, unit, fixed, count, places_of, costs, origin=origin)
