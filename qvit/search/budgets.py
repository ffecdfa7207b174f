"""Budgets: costs that an allocation may not exceed, and allocations that keep to them.

What counts is what an allocation costs as a whole (`hold`). What its layers add up to is known faster, changes layer by
layer, and leads the searches: under `guides`, limits of these sums that are as far from the budgets' as the whole of an
allocation nearby is from its sum. A file has up to three thousandths less (one of 90 kB four), a card's pass a
hundredth more or less, and with bits of heads up to an eighth.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qvit.errors import UsageError
from qvit.recipe import MAX_BITS, MIN_BITS
from qvit.search.costs import CostTable


@dataclass(frozen=True, slots=True)
class Budget:
    """A cost that may not exceed a limit, in the table's unit."""

    table: CostTable
    limit: float

    def violation(self, bits: Tensor | Sequence[int]) -> float:
        """By which share of the limit the layers of an allocation add up to more; negative where they do not."""
        return self.table.total(bits) / self.limit - 1

    def room(self, bits: Tensor | Sequence[int]) -> float:
        """What a change of an allocation may cost by the sum of layers so that the budget may hold: about, on the large
        side. `hold` has the last word on what costs no more.
        """
        return self.limit * (1 + self.table.apart) - self.table.whole(bits)

    def check(self) -> None:
        """Raises UsageError where no allocation meets the budget, with the smallest that one does."""
        least = self.table.smallest
        if least > self.limit:
            say = self.table.say
            raise UsageError(
                f"a budget of {say(self.limit)} cannot be met: the smallest that is possible is {say(least, up=True)}"
            )


def hold(budgets: Sequence[Budget], bits: Tensor | Sequence[int]) -> bool:
    """Whether the model that an allocation makes keeps to all budgets."""
    return all(budget.table.whole(bits) <= budget.limit for budget in budgets)


def guides(budgets: Sequence[Budget], bits: Tensor | Sequence[int]) -> list[Budget]:
    """The budgets with limits for sums of layers: an allocation whose whole is as many times its sum as that of `bits`
    holds where its sum is within them. The budgets' own, where the whole is the sum.
    """
    ratios = [b.table.total(bits) / b.table.whole(bits) for b in budgets]
    return [Budget(b.table, b.limit * ratio) for b, ratio in zip(budgets, ratios, strict=True)]


def first_within(budgets: Sequence[Budget], allocations: Iterable[Tensor]) -> Tensor | None:
    """The first allocation on which all budgets hold; None where they do on none."""
    return next((bits for bits in allocations if hold(budgets, bits)), None)


# Rounds in which the weights of budgets against each other are found, and how fast these move at first.
_ROUNDS, _EAGERNESS = 300, 20.0
_ROUNDING = 1e-9  # of sums of shares
_WIDTHS = MAX_BITS - MIN_BITS + 1


def check_budgets(budgets: Sequence[Budget]) -> Tensor:
    """An allocation on which all budgets hold, int64 [choices]. Raises UsageError for budgets that hold on none, alone
    or together, with what is possible.
    """
    for budget in budgets:
        budget.check()
    tables = [budget.table for budget in budgets]
    bits, tried = _approach(budgets), set()
    while not hold(budgets, bits):
        if tuple(bits.tolist()) in tried or len(tried) == _TRIES:
            limits = " and ".join(f"a budget of {b.table.say(b.limit)}" for b in budgets)
            possible = " and ".join(table.say(table.whole(bits)) for table in tables)
            together = " together" if len(budgets) > 1 else ""
            raise UsageError(f"{limits} cannot be met{together}: what comes nearest has {possible}")
        tried.add(tuple(bits.tolist()))
        bits = _approach(guides(budgets, bits))
    return bits


# Guides that are tried: each is judged by where the one before led.
_TRIES = 16


def _within(limits: Sequence[Budget], bits: Tensor) -> bool:
    return all(limit.violation(bits) <= 0 for limit in limits)


def _approach(budgets: Sequence[Budget]) -> Tensor:
    """An allocation whose layers add up to no more than all limits; where none is found, the nearest.

    For weights of the budgets that add up to one, the allocation of the least weighted sum of costs, each as a share of
    its limit, is known layer by layer; a sum above one says that nothing is within all limits. The weights of what is
    exceeded grow, and from one such allocation to the next the way goes a layer and a bit at a time, since layers
    that are alike change together. Of limits so tight that nothing on these ways is within them, it is the nearest.
    """
    table = budgets[0].table
    shares = torch.stack([b.table.costs.flatten(1) / b.limit for b in budgets])
    fixed = torch.tensor([b.table.fixed / b.limit for b in budgets], dtype=torch.float64)
    layers = torch.arange(shares.shape[1])
    pressure = torch.zeros(len(budgets), dtype=torch.float64)
    start = table.cheapest(shares.mean(0).view_as(table.costs))
    nearest, excess, taken = start, torch.inf, fixed
    for round_ in range(1, _ROUNDS + 1):
        weighted = (pressure.softmax(0).view(-1, 1, 1) * shares).sum(0)
        target = table.cheapest(weighted.view_as(table.costs))
        for cells in _steps(start, target, table):
            taken = fixed + shares[:, layers, cells].sum(1)
            if float(taken.max()) < 1 + _ROUNDING and _within(budgets, table.bits_of(cells)):
                return table.bits_of(cells)
            if float(taken.max()) < excess:
                nearest, excess = cells.clone(), float(taken.max())
        start = target
        pressure += _EAGERNESS / round_**0.5 * (taken - taken.mean())
    return table.bits_of(nearest)


def _steps(first: Tensor, last: Tensor, table: CostTable) -> Iterator[Tensor]:
    """From one choice of cells to another, both included, a layer after the other and a bit at a time; layers that
    share an input take its steps together.
    """
    cells = first.clone()
    yield cells
    for layer in (first != last).nonzero().flatten().tolist():
        together = table.places[:, 1] == table.places[layer, 1]
        for step, moving in ((_WIDTHS, layer), (1, together)):  # by rows, then by columns
            while gap := int(last[layer]) // step % _WIDTHS - int(cells[layer]) // step % _WIDTHS:
                cells[moving] += step if gap > 0 else -step
                yield cells


def fit(wanted: Tensor, budgets: Sequence[Budget]) -> Tensor:
    """The allocation near real-valued bits on which all budgets hold, and to which no bit can be added.

    Rounded first; while a budget is exceeded, the layer goes to other bits whose doing so costs least distance from
    what is wanted for what it saves; where none saves anything (one budget asks for more bits, the other for fewer),
    the way goes on from an allocation on which all hold. Then the choice that lies farthest below what is wanted gains
    a bit, as long as one fits.

    wanted: fp64 [choices]. Returns int64 [choices]. Raises UsageError for budgets that hold on nothing.
    """
    if not budgets:
        return torch.full(wanted.shape, MAX_BITS)
    possible = check_budgets(budgets)
    bits = wanted.round().clamp(MIN_BITS, MAX_BITS).long()
    bits = lowered(bits, budgets, lambda now, limits: _saving_move(now, wanted, limits))
    return _filled(bits if hold(budgets, bits) else possible, wanted, budgets)


Move = Callable[[Tensor, Sequence[Budget]], Tensor | None]


def lowered(bits: Tensor, budgets: Sequence[Budget], move: Move) -> Tensor:
    """An allocation moved until all budgets hold, under one guide after the other; where moves end before, that.

    move: From an allocation whose layers are not within limits to one that exceeds them less; None where there is none.
    """
    for _ in range(_TRIES):
        if hold(budgets, bits):
            break
        limits = guides(budgets, bits)
        while not _within(limits, bits) and (moved := move(bits, limits)) is not None:
            bits = moved
    return bits


def _saving_move(bits: Tensor, wanted: Tensor, budgets: Sequence[Budget]) -> Tensor | None:
    """The allocation after the best move of one layer; None where none lessens what is exceeded in all."""
    table = budgets[0].table
    over = torch.tensor([b.violation(bits) for b in budgets], dtype=torch.float64)
    moved = torch.stack([b.table.moves(bits) / b.limit for b in budgets])
    left = (over.view(-1, 1, 1, 1) + moved).clamp(min=0).sum(0)
    saved = over.clamp(min=0).sum() - left
    farther = table.distances(wanted) - table.distances(wanted).gather(
        1, table.cells_of(bits).unsqueeze(1)
    )
    price = farther.view_as(saved).clamp(min=_FREE_BELOW) / saved
    price = torch.where(saved > _LEAST_SAVED, price, torch.inf).flatten()
    if not price.isfinite().any():
        return None
    layer, cell = divmod(int(price.argmin()), saved[0].numel())
    return table.moved(bits, layer, cell)


# Of a limit: what saves less is rounding. Of a squared bit: moves towards what is wanted are as good as free.
_LEAST_SAVED, _FREE_BELOW = 1e-12, 1e-6


def _filled(bits: Tensor, wanted: Tensor, budgets: Sequence[Budget]) -> Tensor:
    """A bit more where most is lacking, while one fits."""
    while True:
        lacking = torch.where(bits < MAX_BITS, wanted - bits, -torch.inf)
        for budget in budgets:
            lacking[budget.table.steps(bits) > budget.room(bits)] = -torch.inf
        for place in lacking.argsort(descending=True).tolist():
            if lacking[place] == -torch.inf:
                return bits
            more = bits.clone()
            more[place] += 1
            if hold(budgets, more):
                bits = more
                break
        else:
            return bits
