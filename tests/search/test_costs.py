"""Cost tables against what they stand for: real files and counted BitOps, for any allocation."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvit import zoo
from qvit.deployment import storage
from qvit.models.dense import IntegerDense
from qvit.models.plan import plan_scheme
from qvit.models.timm_import import read_model
from qvit.models.vit import ViT
from qvit.recipe import Recipe
from qvit.search.allocation import Space
from qvit.search.bitops import count_bitops
from qvit.search.costs import CostTable, bitops_table, size_table
from tests.executions import both
from tests.support import float_vit

VIT = float_vit()
RECIPE = Recipe.preset("qvit", weight_bits=4, activation_bits=4).without_images().with_open_ends()
SPACE = Space.of(VIT.config, RECIPE)
SIZE, BITOPS = size_table(VIT.config, SPACE), bitops_table(VIT.config, SPACE)
COUNT = len(SPACE.choices)
ALLOCATIONS = st.lists(st.integers(2, 8), min_size=COUNT, max_size=COUNT)


def test_everything_but_pixels_can_be_chosen():
    names = VIT.config.linears()
    assert 2 * len(names) - 1 + VIT.config.depth == COUNT
    layers = SPACE.layers(SPACE.uniform(3))
    assert layers["patch_embed.proj"] == "W3"
    assert layers["blocks.1.attn"] == "A3"
    assert layers["blocks.0.mlp.fc2"] == "W3A3"


@settings(max_examples=15)
@given(ALLOCATIONS)
def test_bitops_are_counted(bits):
    scheme = plan_scheme(VIT.config, SPACE.recipe_of(bits))
    assert BITOPS.total(bits) == sum(count_bitops(VIT.config, scheme).values())


@settings(max_examples=15)
@given(ALLOCATIONS)
def test_size_is_that_of_the_file_and_sums_are_but_for_digits(bits):
    model = both_empty(plan_scheme(VIT.config, SPACE.recipe_of(bits)))
    size = storage.file_bytes(model)
    assert SIZE.whole(bits) == size
    assert size <= SIZE.total(bits) <= size + 16 * (len(storage.layout(model)) + 1)


def both_empty(scheme):
    with torch.device("meta"):
        return ViT(VIT.config, scheme, IntegerDense)


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("bits", [3, 4])
def test_a_real_file_is_as_large_to_the_byte(bits, heads, tmp_path):
    """Of demo_vit, with bits at random."""
    source = zoo.resolve("demo_vit")
    vit = read_model(zoo.load(source), source.pretrained_cfg)
    recipe = Recipe.preset("qvit", weight_bits=bits, activation_bits=bits).without_images()
    space = Space.of(vit.config, recipe.with_open_ends(), heads=heads)
    allocation = torch.randint(2, 9, (len(space.choices),))
    _, model = both(vit, space.recipe_of(allocation))
    storage.save_weights(model, tmp_path)
    written = (tmp_path / storage.WEIGHTS).stat().st_size
    assert size_table(vit.config, space).whole(allocation) == written


@settings(max_examples=15)
@given(ALLOCATIONS, st.integers(0, COUNT - 1))
def test_slopes_are_differences(bits, place):
    low, high = max(bits[place] - 1, 2), min(bits[place] + 1, 8)
    for table in (SIZE, BITOPS):
        around = [table.total([*bits[:place], b, *bits[place + 1 :]]) for b in (low, high)]
        slope = float(table.slopes(bits)[place])
        assert slope == pytest.approx((around[1] - around[0]) / (high - low))


@settings(max_examples=15)
@given(ALLOCATIONS, st.integers(0, COUNT - 1))
def test_steps_are_differences(bits, place):
    more = [*bits[:place], min(bits[place] + 1, 8), *bits[place + 1 :]]
    for table in (SIZE, BITOPS):
        assert float(table.steps(bits)[place]) == table.total(more) - table.total(bits)


@settings(max_examples=15)
@given(ALLOCATIONS, ALLOCATIONS)
def test_moves_of_one_layer_after_the_other_add_up(bits, others):
    """Attention has no weights, the patch embedding no bits of inputs: their cells are those of two bits there."""
    for table in (SIZE, BITOPS):
        assert table.bits_of(table.cells_of(bits)).tolist() == bits
        moves = table.moves(bits).flatten(1).gather(1, table.cells_of(others).unsqueeze(1))
        assert float(moves.sum()) == pytest.approx(table.total(others) - table.total(bits))


def test_distances_are_those_of_both_choices_of_a_layer():
    wanted = torch.linspace(2, 8, COUNT).double()
    bits = torch.randint(2, 9, (COUNT,))
    each = SIZE.distances(wanted).gather(1, SIZE.cells_of(bits).unsqueeze(1))
    assert float(each.sum()) == pytest.approx(float((wanted - bits).square().sum()))


def test_the_smallest_is_that_of_two_bits():
    for table in (SIZE, BITOPS):
        assert table.smallest == table.whole(SPACE.uniform(2))


HEADS = Space.of(VIT.config, RECIPE, heads=True)
HEAD_SIZE, HEAD_BITOPS = size_table(VIT.config, HEADS), bitops_table(VIT.config, HEADS)
HEAD_COUNT = len(HEADS.choices)
OF_HEADS = st.lists(st.integers(2, 8), min_size=HEAD_COUNT, max_size=HEAD_COUNT)


@settings(max_examples=15, deadline=None)
@given(OF_HEADS)
def test_heads_cost_what_they_are_and_what_the_file_says(bits):
    scheme = plan_scheme(VIT.config, HEADS.recipe_of(bits))
    assert HEAD_BITOPS.total(bits) == sum(count_bitops(VIT.config, scheme).values())
    model = both_empty(scheme)
    size = storage.file_bytes(model)
    assert HEAD_SIZE.whole(bits) == size
    assert abs(HEAD_SIZE.total(bits) - size) < 0.03 * size  # what budgets have to make up for


@settings(max_examples=15, deadline=None)
@given(OF_HEADS, st.integers(0, 10_000))
def test_moves_and_steps_of_heads_take_their_input_along(bits, seed):
    generator = torch.Generator().manual_seed(seed)
    bits = torch.tensor(bits)
    for table in (HEAD_SIZE, HEAD_BITOPS):
        now, moves = table.total(bits), table.moves(bits).flatten(1)
        for layer in torch.randint(len(table.places), (4,), generator=generator).tolist():
            cell = int(torch.randint(49, (), generator=generator))
            moved = table.total(table.moved(bits, layer, cell))
            assert moved - now == pytest.approx(float(moves[layer, cell]), abs=1e-6 * now)
        assert torch.equal(table.bits_of(table.cells_of(bits)), bits)
        steps = table.steps(bits)
        for place in torch.randint(HEAD_COUNT, (4,), generator=generator).tolist():
            more = bits.clone()
            more[place] = min(8, more[place] + 1)
            assert table.total(more) - now == pytest.approx(float(steps[place]), abs=1e-6 * now)


def test_the_cheapest_cells_share_their_input():
    """Beside all allocations of two slices and their input."""
    generator = torch.Generator().manual_seed(0)
    places = torch.tensor([[0, 2], [1, 2], [3, 4]])
    for _ in range(5):
        costs = torch.rand(3, 7, 7, generator=generator, dtype=torch.float64)
        costs[2] = costs[2, :, :1]  # its input is settled
        table = CostTable("size", "B", 0.0, 4, places, costs)
        found = table.total(table.bits_of(table.cheapest(costs)))
        best = min(
            float(costs[0, a, x] + costs[1, b, x]) for a, b, x in product(range(7), repeat=3)
        )
        assert found == pytest.approx(best + float(costs[2].min()))
