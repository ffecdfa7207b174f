"""Allocations that keep to budgets, on the tables of a small model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvit.deployment import storage
from qvit.errors import UsageError
from qvit.models.plan import plan_scheme
from qvit.search.budgets import Budget, check_budgets, first_within, fit, hold
from qvit.search.costs import CostTable
from qvit.search.latency import Place, latency_table
from tests.search.test_costs import (
    BITOPS,
    COUNT,
    HEAD_BITOPS,
    HEAD_COUNT,
    HEAD_SIZE,
    HEADS,
    SIZE,
    SPACE,
    VIT,
    both_empty,
)

WANTED = st.lists(st.floats(0, 10), min_size=COUNT, max_size=COUNT).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)
SHARES = st.floats(0, 1)


def budget(table, share: float) -> Budget:
    """So far between what two and eight bits cost."""
    least, most = table.smallest, table.whole(SPACE.uniform(8))
    return Budget(table, least + share * (most - least))


@settings(max_examples=20)
@given(WANTED, st.one_of(st.none(), SHARES), st.one_of(st.none(), SHARES))
def test_no_budget_is_exceeded_and_no_bit_can_be_added(wanted, size, bitops):
    shares = [(SIZE, size), (BITOPS, bitops)]
    budgets = [budget(table, share) for table, share in shares if share is not None]
    bits = fit(wanted, budgets)
    assert hold(budgets, bits)
    assert bits.min() >= 2
    assert bits.max() <= 8
    assert not addable(bits, budgets)


def addable(bits, budgets) -> list[int]:
    """Choices that may have a bit more, all of them tried."""
    ones = torch.eye(COUNT, dtype=torch.int64)
    tried = [place for place in range(COUNT) if bits[place] < 8]
    return [place for place in tried if hold(budgets, bits + ones[place])]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("share", [None, 0.7])
def test_no_bit_can_be_added_within_a_modelled_latency(seed, share):
    """On a card where launches that wait for the slowest of what they do show: a bit more may take less of the whole
    than of the layers' sum. Limits are just what models take.
    """
    pytest.importorskip("triton")
    latency = latency_table(VIT.config, SPACE, Place("nvidia-l4", batch=4096))
    others = [] if share is None else [budget(SIZE, share)]
    generator = torch.Generator().manual_seed(seed)
    for model in torch.randint(2, 9, (20, COUNT), generator=generator):
        budgets = [Budget(latency, latency.whole(model)), *others]
        bits = fit(model.double(), budgets)
        assert hold(budgets, bits)
        assert not addable(bits, budgets)


def test_what_fits_is_taken_as_it_is():
    wanted = torch.full((COUNT,), 4.0, dtype=torch.float64)
    exactly = Budget(BITOPS, BITOPS.total(SPACE.uniform(4)))
    assert torch.equal(fit(wanted, [exactly]), SPACE.uniform(4))
    uniform = [SPACE.uniform(bits) for bits in range(8, 1, -1)]
    assert torch.equal(first_within([exactly], uniform), SPACE.uniform(4))
    assert torch.equal(first_within([exactly, budget(SIZE, 0)], uniform), SPACE.uniform(2))
    assert first_within([budget(SIZE, 0)], uniform[:-1]) is None


def random_table(name: str, generator: torch.Generator) -> CostTable:
    """Of four layers, whose costs need not rise with bits."""
    costs = torch.rand(4, 7, 7, generator=generator, dtype=torch.float64)
    places = torch.tensor([[0, 1], [2, 3], [4, 7], [5, 6]])
    costs[2] = costs[2, :, :1]
    return CostTable(name, "B", 0.1, 7, places, costs)


@pytest.mark.parametrize("seed", range(5))
def test_costs_need_not_rise_with_bits(seed):
    """One budget may ask for what the other forbids: they are met, or nothing meets them where all is tried, either."""
    generator = torch.Generator().manual_seed(seed)
    tables = [random_table(name, generator) for name in ("first", "second")]
    for share in (0.25, 0.35, 0.5):
        budgets = [Budget(t, t.smallest + share * (t.largest - t.smallest)) for t in tables]
        wanted = 2 + 6 * torch.rand(7, generator=generator, dtype=torch.float64)
        try:
            assert hold(budgets, fit(wanted, budgets))
        except UsageError:
            # the 49 cells of each of four layers: every sum of the first two, and of the last two
            sums = [t.costs.flatten(1) for t in tables]
            first, second = (
                torch.stack([(s[i][:, None] + s[i + 1]).flatten() for s in sums], 1) for i in (0, 2)
            )
            rest = [b.limit - b.table.fixed for b in budgets]
            left = torch.tensor(rest, dtype=torch.float64) - first
            assert not any(bool((second <= one).all(1).any()) for one in left)


def test_budgets_that_oppose_each_other_are_refused_with_what_comes_nearest():
    rising = torch.arange(2.0, 9).double().view(1, 7, 1).expand(3, 7, 7)
    places = torch.tensor([[0, 3], [1, 3], [2, 3]])
    small = CostTable("size", "B", 0.0, 3, places, rising)
    fast = CostTable("latency", "s", 0.0, 3, places, 10 - rising)
    assert hold(
        [Budget(small, 12), Budget(fast, 18)], check_budgets([Budget(small, 12), Budget(fast, 18)])
    )
    found = fit(torch.full((3,), 8.0).double(), [Budget(small, 12), Budget(fast, 18)])
    assert found.sum() == 12
    with pytest.raises(UsageError, match="cannot be met together: what comes nearest has"):
        check_budgets([Budget(small, 11), Budget(fast, 18)])


@pytest.mark.parametrize("table", [SIZE, BITOPS], ids=["size", "bitops"])
def test_an_impossible_budget_names_the_smallest(table):
    with pytest.raises(UsageError, match=f"{table.smallest:,.0f} {table.unit}"):
        fit(SPACE.uniform(4).double(), [Budget(table, table.smallest - 1)])
    assert torch.equal(
        fit(SPACE.uniform(4).double(), [budget(table, 0)]).clamp(max=2), SPACE.uniform(2)
    )


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.floats(0, 10), min_size=HEAD_COUNT, max_size=HEAD_COUNT),
    st.floats(0, 1),
    st.one_of(st.none(), SHARES),
)
def test_budgets_hold_on_models_whose_heads_differ(wanted, size, bitops):
    shares = [(HEAD_SIZE, size), (HEAD_BITOPS, bitops)]
    budgets = []
    for table, share in shares:
        if share is not None:
            least, most = table.smallest, table.whole(HEADS.uniform(8))
            budgets.append(Budget(table, least + share * (most - least)))
    bits = fit(torch.tensor(wanted, dtype=torch.float64), budgets)
    assert hold(budgets, bits)
    scheme = plan_scheme(VIT.config, HEADS.recipe_of(bits))
    assert storage.file_bytes(both_empty(scheme)) <= budgets[0].limit
