"""Recipes that train: what they hold, what scales with their budget, and what they refuse."""

from dataclasses import replace

import pytest

from qvit.distillation.stage import plan_training
from qvit.errors import UsageError
from qvit.recipe import (
    DISTILLATIONS,
    PUBLICATIONS,
    Distillation,
    Recipe,
    Static,
    load_recipe,
)


def paper(name, **changes) -> Recipe:
    return Recipe.preset(f"paper-{name}", weight_bits=4, activation_bits=4, **changes)


@pytest.mark.parametrize("name", PUBLICATIONS)
@pytest.mark.parametrize("budget", [None, "quick", "standard", "0.02"])
def test_publications_survive_yaml(name, budget):
    recipe = Recipe.preset(name, weight_bits=3, activation_bits=4, budget=budget)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert recipe.budget == (budget or "full")
    assert recipe.static is not None
    assert recipe.override(["static=none"]).static is None


@pytest.mark.parametrize("method", DISTILLATIONS)
def test_trainings_survive_yaml(method):
    recipe = Recipe().override(
        ["synthesis=noise", f"distillation={method}", "distillation.epochs=3"]
    )
    assert recipe.distillation == Distillation.preset(method, epochs=3)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert recipe.override(["distillation=none", "synthesis=none"]) == Recipe()


def counts(recipe):
    return recipe.synthesis.images, recipe.synthesis.iterations, recipe.distillation.epochs


def test_a_budget_scales_images_iterations_and_epochs_together():
    assert counts(paper("mimiq")) == (10_000, 2000, 200)
    assert counts(paper("mimiq", budget="quick")) == (1000, 200, 20)
    assert counts(paper("mimiq", budget="0.5")) == (5000, 1000, 100)
    assert counts(paper("mimiq", budget="1e-6")) == (32, 50, 4)
    assert paper("psaq", budget="quick").synthesis.images == 32
    assert paper("psaq-v2", budget="quick").game.rounds == 10
    assert paper("maskaq", budget="quick").distillation.renew == 3
    assert paper("mimiq", budget="quick").distillation.renew == 0
    other = paper("mimiq", budget="quick").distillation
    published = paper("mimiq").distillation
    assert other == replace(published, epochs=20)  # the shape of the schedule stays


def test_counts_that_were_set_are_of_no_budget():
    quick = paper("maskaq", budget="quick")
    for setting in ("synthesis.images=64", "distillation.renew=2", "synthesis=psaq"):
        found = quick.override([setting])
        assert found.budget == "custom"
        assert Recipe.from_yaml(found.to_yaml()) == found
        assert found.override(["synthesis.lr=0.2"]).budget == "custom"
    for setting in (
        "synthesis.lr=0.2",
        "synthesis.images=1000",
        "static=none",
        "distillation=none",
    ):
        assert quick.override([setting]).budget == "quick"
    assert paper("psaq-v2").override(["game=3"]).budget == "custom"
    with pytest.raises(UsageError, match="one of quick, standard, full"):
        paper("mimiq", budget="custom")


def test_publications_train_on_every_image_for_the_published_steps():
    for name, steps in {"mimiq": 125_000, "maskaq": 125_000, "ait": 80_000, "acq": 80_000}.items():
        planned = plan_training(paper(name))
        assert planned is not None
        assert (planned["steps"], planned["held_out"]) == (steps, 0)
    ait = paper("ait").synthesis
    # a pair of images a condition: 16 images a step, and a tenth of the statistics (GDFQ)
    assert (ait.iterations, 2 * ait.batch, ait.statistics, ait.classes) == (80_000, 16, 0.1, 1.0)
    assert (ait.condition, ait.centres, ait.pairs, ait.consistency) == ("label", 0.0, 0.0, 0.0)


@pytest.mark.parametrize("budget", ["huge", "0", "2", "-1", "nan", ""])
def test_impossible_budgets(budget):
    with pytest.raises(UsageError, match="one of quick, standard, full, or a share"):
        Recipe().override([f"budget='{budget}'"])


def test_the_counts_of_a_file_are_what_they_are(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(paper("mimiq", budget="quick").to_yaml())
    assert counts(load_recipe(str(path))) == (1000, 200, 20)
    with pytest.raises(UsageError, match="says how many images"):
        load_recipe(str(path), budget="full")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["distillation=mimiq"], "distillation needs images"),
        (["synthesis=noise", "distillation=mimik"], "did you mean mimiq"),
        (["distillation.lr=1"], "turn that on with --set distillation=METHOD"),
        (["synthesis=noise", "distillation=kl", "distillation.epochs=0"], "expected 1 or more"),
        (["synthesis=noise", "distillation=kl", "distillation.kl=0"], "nothing to learn from"),
        (["synthesis=noise", "distillation=kl", "distillation.lr_final=1"], "exchange them"),
        (["synthesis=noise", "distillation=kl", "distillation.optimiser=lion"], "sgd, adam"),
        (
            ["synthesis=noise", "distillation=kl", "distillation.patience=1", "distillation.holdout=0"],
            "raise distillation.holdout",
        ),
        (["static=lqs"], "expected one of lsq"),
        (["static=lsq", "static.ends=1"], "expected 2 to 8"),
        (["static=lsq", "weights.bits=4", "weights.group=16"], "begin with --recipe plain"),
        (["static=lsq", "activations.prefix_bits=8"], "activations.prefix_bits belongs to qvit's own"),
        (["game=many"], "a number of rounds"),
        (["game=3"], "how the student learns"),
    ],
)  # fmt: skip
def test_bad_settings_of_training(settings, told):
    with pytest.raises(UsageError, match=told):
        Recipe().override(settings)


def test_static_quantizers_by_a_word():
    recipe = Recipe.preset("plain", weight_bits=4, activation_bits=4).override(["static=ema"])
    assert recipe.static == Static(activations="ema")


def test_without_images_nothing_is_made_or_learned():
    default = Recipe.preset("qvit", weight_bits=4, activation_bits=4)
    assert default.synthesis is not None
    assert default.weights.rounding == "gptq"
    plain = default.without_images()
    assert (plain.synthesis, plain.distillation, plain.game) == (None, None, None)
    assert plain.weights == replace(default.weights, rounding="nearest")
    assert (plain.activations, plain.transforms) == (default.activations, default.transforms)
    game = Recipe.preset("paper-psaq-v2", weight_bits=4, activation_bits=4)
    assert game.without_images().game is None
