from benchmarks.searching.limits import limits_of_uniform, starts_of
from benchmarks.sources import DEMO, source
from qvit import pipeline
from qvit.models.timm_import import read_shape
from qvit.recipe import Recipe
from qvit.search.start import begin


def test_limits_are_what_the_preset_takes():
    config = read_shape(source(DEMO))
    three, four = (limits_of_uniform(config, bits, bits) for bits in (3, 4))
    preset = Recipe.preset("qvit", weight_bits=4, activation_bits=4)
    assert four["size"] == pipeline.plan(source(DEMO), preset)["bytes"]
    assert all(three[name] < four[name] for name in four)


def test_the_start_is_the_preset_of_as_many_bits():
    config = read_shape(source(DEMO))
    for bits, norm_group in ((3, 64), (4, 0)):
        limits = limits_of_uniform(config, bits, bits)
        space, budgets = begin(config, starts_of(7, limits), limits)
        assert space.recipe.activations.norm_group == norm_group
        assert space.recipe.seed == 7
        assert len(budgets) == 2


def test_activations_of_eight_bits_keep_them():
    config = read_shape(source(DEMO))
    limits = limits_of_uniform(config, 4, 8)
    assert list(limits) == ["size"]
    space, _ = begin(config, starts_of(0, limits), limits)
    assert {choice.kind for choice in space.choices} == {"W"}
    assert space.recipe.activations.bits == 8
