"""Answers at an allocation: those of the model at these bits, whichever execution gives them."""

import pytest
import torch

from qvit.deployment import cpu_preparation
from qvit.models.fake_quantized import FakeQuantized
from qvit.models.folding import fold
from qvit.models.plan import plan_scheme
from qvit.models.switching import SwitchableModel
from qvit.recipe import Recipe
from qvit.search.allocation import WIDTHS, Space
from qvit.search.answers import Answers
from tests.support import float_vit, images_for

RECIPE = Recipe.preset("qvit", weight_bits=4, activation_bits=4).without_images().with_open_ends()


def begun(shape="three heads", *, heads=False):
    """Answers, and the model behind them."""
    vit = float_vit(shape)
    space = Space.of(vit.config, RECIPE, heads=heads)
    schemes = {b: plan_scheme(vit.config, space.recipe_of(space.uniform(b))) for b in WIDTHS}
    model = SwitchableModel(
        fold(vit, plan_scheme(vit.config, RECIPE), seed=0), schemes, RECIPE.weights.range
    )
    return Answers(model, vit.config, RECIPE), model, space, images_for(vit, 20)


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("shape", ["three heads", "QK-norm", "registers", "no head"])
def test_both_executions_give_the_same_answers(shape, heads):
    """But for what is nearly a tie."""
    answer, model, space, images = begun(shape, heads=heads)
    if not answer.fast:
        pytest.skip("there is no compiled path here")
    torch.manual_seed(0)
    for bits in (space.uniform(8), torch.randint(3, 9, (len(space.choices),))):
        found = answer(images, space.recipe_of(bits))
        with torch.no_grad():
            expected = model.vit(images, FakeQuantized())
        error = (found - expected).square().mean() / expected.square().mean()
        assert (
            float(error) < 0.02
        )  # 0.0065 at most were seen, and 0.26 at least with three bits for all


def test_where_nothing_is_compiled_the_execution_to_train_by_answers(monkeypatch):
    monkeypatch.setattr(cpu_preparation, "prepare", lambda vit: "no compiler was found")
    answer, model, space, images = begun()
    assert not answer.fast
    found = answer(images, space.recipe_of(space.uniform(3)))
    with torch.no_grad():
        expected = torch.cat([model.vit(some, FakeQuantized()) for some in images.split(8)])
    assert torch.equal(found, expected)


def test_whether_it_is_compiled_is_asked_once(monkeypatch):
    reasons = []
    prepare = cpu_preparation.prepare

    def asked(vit):
        reasons.append(prepare(vit))
        return reasons[-1]

    monkeypatch.setattr(cpu_preparation, "prepare", asked)
    answer, _, space, images = begun()
    for bits in (4, 5):
        answer(images, space.recipe_of(space.uniform(bits)))
        assert answer.fast == (reasons[0] is None)
    assert len(reasons) == 1
