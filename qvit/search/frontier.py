"""The frontier of a model: what allocations cost, and how far they are from the float model, from few bits to many."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qvit.models.config import ViTConfig
from qvit.recipe import Recipe
from qvit.search.allocation import Space
from qvit.search.bitops import count_macs
from qvit.search.descent import Searcher, Settings
from qvit.search.levels import MEASURED
from qvit.search.start import Start, choose_start

COSTS = ("size", "bitops", "latency")
POINTS = 6  # a cost
_BISECTIONS = 4
# At most: beside what is found, of the largest allocation that needs no search.
MEASUREMENTS = 2 * (POINTS + _BISECTIONS)

# Of a core without AVX-512, for 10^9 multiply-accumulates of an image: a pass on the grids (a ViT-Tiny's 0.13 s, and
# more on a busy core), and the curvature of all widths. Of 10^6 weights: the grids of the widths that are measured.
_PASS_SECONDS, _CURVATURE_SECONDS, _GRID_SECONDS = 0.15, 0.4, 0.4


@dataclass(frozen=True, slots=True)
class Point:
    """An allocation that was found under a limit.

    start: Which of the starts it is of, of all costs. space: What it is an allocation of. bits: int64 [choices].
    divergence: KL in nats, on leaves. costs: Of every table, by its name. limited: Which of them had a limit. limit:
    That.
    """

    start: int
    space: Space
    bits: Tensor
    divergence: float
    costs: dict[str, float]
    limited: str
    limit: float

    @property
    def recipe(self) -> Recipe:
        """That gives layers these bits, on the grids on which they were measured."""
        return self.space.recipe_of(self.bits)

    def describe(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "limited": self.limited,
            "limit": self.limit,
            "kl": round(self.divergence, 5),
            **self.costs,
            "layers": self.space.layers(self.bits),
        }


class Frontier:
    """Finds allocations within limits on one cost after the other, and measures them.

    starts: By cost, of recipes of which each limit has the one that suits it, the one for most bits first, as `qvit
    quantize --bits auto` has (`starts_by_cost`). search: That makes a Searcher of a space; called once for each that a
    limit asks for. note: Called before each search, with what it is for.
    """

    def __init__(
        self,
        starts: Mapping[str, Sequence[Start]],
        search: Callable[[Space], Searcher],
        note: Callable[[str], None],
    ) -> None:
        self._starts, self._search, self._note = starts, search, note
        # each once, also where several costs have it
        self._distinct = list(dict.fromkeys(start for own in starts.values() for start in own))
        self._searchers: dict[int, Searcher] = {}

    def points(self, name: str, count: int = POINTS) -> list[Point]:
        """Under limits on a cost, evenly spread from the smallest to the largest, the cheaper first, each once."""
        least, most = self._ends(name)
        limits = torch.linspace(least, most, count, dtype=torch.float64).tolist()
        limits[0], limits[-1] = least, most  # to the last digit
        found = [self._at(name, limit) for limit in limits]
        return list({(p.start, *p.bits.tolist()): p for p in found}.values())

    def cheapest(self, name: str, most: float, points: Sequence[Point]) -> Point | None:
        """The cheapest point found whose divergence is `most` at most: between two of `points` the limit is halved a
        few times. None where not even eight bits everywhere reach it.
        """
        good = [point for point in points if point.divergence <= most]
        if not good:
            return None
        best = min(good, key=lambda point: point.costs[name])
        worse = [p.costs[name] for p in points if p.costs[name] < best.costs[name]]
        low = max(worse, default=best.costs[name])
        for _ in range(_BISECTIONS):
            middle = (low + best.costs[name]) / 2
            point = self._at(name, max(middle, self._ends(name)[0]))
            if point.divergence <= most:
                best = min((best, point), key=lambda p: p.costs[name])
            else:
                low = middle
        return best

    @property
    def images(self) -> int:
        """How many divergences are of."""
        return min(searcher.asked for searcher in self._searchers.values())

    def _ends(self, name: str) -> tuple[float, float]:
        """The least that an allocation costs with any recipe, and the most with the first."""
        least = min(start.table(name).smallest for start in self._starts[name])
        return least, self._starts[name][0].table(name).largest

    def _at(self, name: str, limit: float) -> Point:
        start = choose_start(self._starts[name], {name: limit})
        self._note(f"{name} {start.table(name).say(limit)}")
        space, number = start.space, self._distinct.index(start)
        searcher = self._searchers.get(number) or self._search(space)
        self._searchers[number] = searcher
        found = searcher.search(start.budgets({name: limit}))
        costs = {each: start.table(each).whole(found.bits) for each in COSTS}
        return Point(number, space, found.bits, found.divergence, costs, name, limit)


def estimate_seconds(config: ViTConfig, choices: int, measurements: int, recipes: int = 1) -> float:
    """How long a search takes that measures so many allocations, and each choice alone, at the worst: on one core
    without AVX-512. choices: Of all recipes together.
    """
    shapes = config.linears()
    weights = sum(n * k for n, k in shapes.values())
    settings = Settings()
    passes = settings.curved * (measurements * _PASS_SECONDS + recipes * _CURVATURE_SECONDS)
    passes += settings.few * choices * len(MEASURED) * _PASS_SECONDS
    return passes * count_macs(config) / 1e9 + recipes * _GRID_SECONDS * weights / 1e6
