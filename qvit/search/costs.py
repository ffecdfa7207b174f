"""Cost tables: what each layer costs at its bits, so that an allocation's cost is a sum of look-ups.

Bytes are those of the file: an allocation's sum never lies below it, and above by the digits of offsets alone (2 kB of
ViT-Tiny's 3.4 MB at W4A4). BitOps are exact.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class CostTable:
    """Costs of the allocations of a space.

    Attributes:
        name: "size", "bitops" or "latency"; unit: "B", "BitOps" or "s".
        fixed: What no choice changes.
        pairs: For each layer the places of its weights' and its input's choice in an allocation, None where that is
            settled, and fp64 [7, 7], the cost by weight bits and input bits 2 to 8 (rows alike where weights are
            settled, columns where inputs are).
    """

    name: str
    unit: str
    fixed: float
    pairs: tuple[tuple[int | None, int | None, Tensor], ...]

    def total(self, bits: Tensor | Sequence[int]) -> float:
        """The cost of an allocation."""
        found = self.fixed
        for weight, input, table in self.pairs:
            row = 0 if weight is None else int(bits[weight]) - WIDTHS[0]
            column = 0 if input is None else int(bits[input]) - WIDTHS[0]
            found += float(table[row, column])
        return found

    def slopes(self, bits: Tensor | Sequence[int]) -> Tensor:
        """How the cost changes with each choice around an allocation, a bit more against a bit less: fp64 [choices]."""
        found = torch.zeros(len(bits), dtype=torch.float64)
        last = len(WIDTHS) - 1
        for weight, input, table in self.pairs:
            row = 0 if weight is None else int(bits[weight]) - WIDTHS[0]
            column = 0 if input is None else int(bits[input]) - WIDTHS[0]
            if weight is not None:
                low, high = max(row - 1, 0), min(row + 1, last)
                found[weight] += (table[high, column] - table[low, column]) / (high - low)
            if input is not None:
                low, high = max(column - 1, 0), min(column + 1, last)
                found[input] += (table[row, high] - table[row, low]) / (high - low)
        return found

    @property
    def smallest(self) -> float:
        """The least that an allocation costs: bits cost more, never less."""
        return self.fixed + sum(float(table.min()) for _, _, table in self.pairs)

    @property
    def depends_on_inputs(self) -> bool:
        """Whether bits of activations cost anything."""
        return any(
            input is not None and bool((table != table[:, :1]).any())
            for _, input, table in self.pairs
        )


def size_table(config: ViTConfig, space: Space) -> CostTable:
    """Bytes of model.safetensors."""

    def measure(scheme: ModelScheme) -> tuple[float, dict[str, float]]:
        with torch.device("meta"):
            model = ViT(config, scheme, IntegerDense)
        parts = storage.layer_bytes(model)
        return parts.pop(""), dict(parts)

    return _table("size", "B", config, space, measure)


def bitops_table(config: ViTConfig, space: Space) -> CostTable:
    """BitOps of an image."""

    def measure(scheme: ModelScheme) -> tuple[float, dict[str, float]]:
        return 0.0, dict(count_bitops(config, scheme))

    return _table("bitops", "BitOps", config, space, measure)


def _table(
    name: str,
    unit: str,
    config: ViTConfig,
    space: Space,
    measure: Callable[[ModelScheme], tuple[float, dict[str, float]]],
) -> CostTable:
    """From what `measure` says of schemes in which all layers have the same bits: the rest, and each layer's part."""
    places: dict[str, list[int | None]] = {}
    for place, choice in enumerate(space.choices):
        places.setdefault(choice.layer, [None, None])["WA".index(choice.kind)] = place
    side = len(WIDTHS)
    tables = {layer: torch.zeros(side, side, dtype=torch.float64) for layer in places}
    fixed = 0.0
    for row, weights in enumerate(WIDTHS):
        for column, inputs in enumerate(WIDTHS):
            bits = [weights if c.kind == "W" else inputs for c in space.choices]
            recipe = space.recipe_of(bits)
            rest, parts = measure(plan_scheme(config, recipe))
            for layer, table in tables.items():
                table[row, column] = parts.get(layer, 0.0)
            others = sum(part for layer, part in parts.items() if layer not in tables)
            fixed = max(fixed, rest + others)
    pairs = tuple((*places[layer], table) for layer, table in tables.items())
    return CostTable(name, unit, fixed, pairs)  # pyright: ignore[reportArgumentType]
