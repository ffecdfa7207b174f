"""The frontier of a model: what allocations cost, and how far they are from the float model, from few bits to many."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qvit.models.config import ViTConfig
from qvit.search.allocation import Space
from qvit.search.bitops import count_macs
from qvit.search.budgets import Budget
from qvit.search.costs import CostTable
from qvit.search.descent import Searcher, Settings
from qvit.search.levels import MEASURED

COSTS = ("size", "bitops", "latency")
POINTS = 6  # a cost
_BISECTIONS = 4
MEASUREMENTS = POINTS + _BISECTIONS  # at most

# Of a core without AVX-512, for 10^9 multiply-accumulates of an image: a pass on the grids (a ViT-Tiny's 0.13 s, and
# more on a busy core), and the curvature of all widths. Of 10^6 weights: the grids of the widths that are measured.
_PASS_SECONDS, _CURVATURE_SECONDS, _GRID_SECONDS = 0.15, 0.4, 0.4


@dataclass(frozen=True, slots=True)
class Point:
    """An allocation that was found under a budget. bits: int64 [choices]. divergence: KL in nats, on leaves. costs: Of
    every table, by its name. limited: Which of them had a limit.
    """

    bits: Tensor
    divergence: float
    costs: dict[str, float]
    limited: str

    def describe(self, space: Space) -> dict[str, Any]:
        """Plain values."""
        return {
            "limited": self.limited,
            "kl": round(self.divergence, 5),
            **self.costs,
            "layers": space.layers(self.bits),
        }


class Frontier:
    """Finds allocations within limits on one cost after the other, and measures them.

    note: Called before each measurement, with what it is of.
    """

    def __init__(
        self, searcher: Searcher, tables: Sequence[CostTable], note: Callable[[str], None]
    ) -> None:
        self._searcher, self._tables, self._note = searcher, tables, note
        self._known: dict[tuple[int, ...], float] = {}

    def points(self, table: CostTable, count: int = POINTS) -> list[Point]:
        """Under limits evenly spread from the smallest cost to the largest, the cheaper first, equal ones once."""
        shares = torch.linspace(0, 1, count, dtype=torch.float64).tolist()
        found = [self._at(table, share) for share in shares]
        return list({tuple(point.bits.tolist()): point for point in found}.values())

    def cheapest(self, table: CostTable, most: float, points: Sequence[Point]) -> Point | None:
        """The cheapest point found whose divergence is `most` at most: between two of `points` the limit is halved a
        few times. None where not even eight bits everywhere reach it.
        """
        good = [point for point in points if point.divergence <= most]
        if not good:
            return None
        best = min(good, key=lambda point: point.costs[table.name])
        worse = [p for p in points if p.costs[table.name] < best.costs[table.name]]
        spread = table.largest - table.smallest
        low = max([p.costs[table.name] for p in worse], default=best.costs[table.name])
        for _ in range(_BISECTIONS):
            middle = (low + best.costs[table.name]) / 2
            point = self._at(table, (middle - table.smallest) / spread if spread else 1.0)
            if point.divergence <= most:
                best = min((best, point), key=lambda p: p.costs[table.name])
            else:
                low = middle
        return best

    def _at(self, table: CostTable, share: float) -> Point:
        limit = table.smallest + share * (table.largest - table.smallest)
        budgets = [Budget(table, max(limit, table.smallest))]
        bits = self._searcher.find(budgets)
        key = tuple(bits.tolist())
        if key not in self._known:
            self._note(f"{table.name} {table.say(limit)}")
            self._known[key] = self._searcher.measure(bits)
        costs = {each.name: each.whole(bits) for each in self._tables}
        return Point(bits, self._known[key], costs, table.name)


def estimate_seconds(config: ViTConfig, choices: int, measurements: int) -> float:
    """How long a search takes that measures so many allocations, and each choice alone, at the worst: on one core
    without AVX-512.
    """
    shapes = config.linears()
    weights = sum(n * k for n, k in shapes.values())
    settings = Settings()
    passes = settings.curved * (measurements * _PASS_SECONDS + _CURVATURE_SECONDS)
    passes += settings.few * choices * len(MEASURED) * _PASS_SECONDS
    return passes * count_macs(config) / 1e9 + _GRID_SECONDS * weights / 1e6
