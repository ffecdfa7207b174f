"""Cost tables against what they stand for: real files and counted BitOps, for any allocation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvit.deployment import storage
from qvit.models.dense import IntegerDense
from qvit.models.plan import plan_scheme
from qvit.models.vit import ViT
from qvit.recipe import Recipe
from qvit.search.allocation import Space
from qvit.search.bitops import count_bitops
from qvit.search.costs import bitops_table, size_table
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
def test_size_is_that_of_the_file_but_for_digits(bits):
    scheme = plan_scheme(VIT.config, SPACE.recipe_of(bits))
    with torch.device("meta"):
        size = storage.file_bytes(ViT(VIT.config, scheme, IntegerDense))
    assert size <= SIZE.total(bits) <= size + 16 * (len(storage.layout(both_empty(scheme))) + 1)


def both_empty(scheme):
    with torch.device("meta"):
        return ViT(VIT.config, scheme, IntegerDense)


def test_a_real_file_is_no_larger(tmp_path):
    bits = torch.randint(2, 9, (COUNT,))
    _, model = both(VIT, SPACE.recipe_of(bits))
    storage.save_weights(model, tmp_path)
    assert (tmp_path / storage.WEIGHTS).stat().st_size <= SIZE.total(bits)


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
        assert table.smallest == table.total(SPACE.uniform(2))


def test_only_products_pay_for_activations():
    assert BITOPS.depends_on_inputs
    assert not SIZE.depends_on_inputs
