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
        places: int64 [layers, 2], where in an allocation the bits of each layer's weights and input are; one behind its
            end where they are settled.
        costs: fp64 [layers, 7, 7], by weight bits and input bits 2 to 8; rows alike where weights are settled, columns
            where inputs are. More bits never cost less.
    """

    name: str
    unit: str
    fixed: float
    places: Tensor
    costs: Tensor

    def total(self, bits: Tensor | Sequence[int]) -> float:
        """The cost of an allocation."""
        layers, rows, columns = self._at(bits)
        return self.fixed + float(self.costs[layers, rows, columns].sum())

    def slopes(self, bits: Tensor | Sequence[int]) -> Tensor:
        """How the cost changes with each choice around an allocation, from a bit less to a bit more where both exist, a
        bit: fp64 [choices].
        """
        layers, rows, columns = self._at(bits)
        found = torch.zeros(len(bits) + 1, dtype=torch.float64)
        low, high = (rows - 1).clamp(min=0), (rows + 1).clamp(max=_LAST)
        change = self.costs[layers, high, columns] - self.costs[layers, low, columns]
        found.index_add_(0, self.places[:, 0], change / (high - low))
        low, high = (columns - 1).clamp(min=0), (columns + 1).clamp(max=_LAST)
        change = self.costs[layers, rows, high] - self.costs[layers, rows, low]
        found.index_add_(0, self.places[:, 1], change / (high - low))
        return found[:-1]

    def _at(self, bits: Tensor | Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Where in the costs an allocation is."""
        known = torch.as_tensor(bits, dtype=torch.int64)
        padded = torch.cat([known, known.new_tensor([WIDTHS[0]])]) - WIDTHS[0]
        rows, columns = padded[self.places].unbind(1)
        return torch.arange(len(rows)), rows, columns

    @property
    def smallest(self) -> float:
        """The least that an allocation costs."""
        return self.fixed + float(self.costs[:, 0, 0].sum())

    @property
    def depends_on_inputs(self) -> bool:
        """Whether bits of activations cost anything."""
        return bool((self.costs[:, :, :1] != self.costs).any())


_LAST = len(WIDTHS) - 1


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
    places: dict[str, list[int]] = {}
    for place, choice in enumerate(space.choices):
        places.setdefault(choice.layer, [len(space.choices)] * 2)["WA".index(choice.kind)] = place
    layers = list(places)
    costs = torch.zeros(len(layers), len(WIDTHS), len(WIDTHS), dtype=torch.float64)
    fixed = 0.0
    for row, weights in enumerate(WIDTHS):
        for column, inputs in enumerate(WIDTHS):
            bits = [weights if c.kind == "W" else inputs for c in space.choices]
            rest, parts = measure(plan_scheme(config, space.recipe_of(bits)))
            costs[:, row, column] = torch.tensor([parts.pop(layer, 0.0) for layer in layers])
            fixed = max(fixed, rest + sum(parts.values()))
    return CostTable(name, unit, fixed, torch.tensor(list(places.values())), costs)
