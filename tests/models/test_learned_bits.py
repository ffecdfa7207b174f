"""A model whose widths are trained: it computes what it would at these widths, and learns a scale for each."""

import pytest
import torch

from qvit.models.fake_quantized import FakeQuantized
from qvit.models.folding import fold
from qvit.models.learned_bits import BitsStudent
from qvit.models.plan import plan_scheme
from qvit.models.switching import SwitchableModel
from qvit.recipe import Recipe
from qvit.search.allocation import WIDTHS, Space
from tests.support import float_vit, images_for

RECIPE = Recipe.preset("qvit", weight_bits=3, activation_bits=3).without_images().with_open_ends()
FC1 = "blocks.0.mlp.fc1"


def switchable(vit, space):
    schemes = {b: plan_scheme(vit.config, space.recipe_of(space.uniform(b))) for b in WIDTHS}
    folded = fold(vit, plan_scheme(vit.config, space.recipe), seed=0)
    return SwitchableModel(folded, schemes, "mse")


def begun(shape="three heads", recipe=RECIPE):
    """A student at drawn widths, and what it was made of."""
    vit = float_vit(shape)
    space = Space.of(vit.config, recipe)
    torch.manual_seed(0)
    bits = torch.randint(2, 9, (len(space.choices),))
    choices = [(choice.layer, choice.kind) for choice in space.choices]
    student = BitsStudent(switchable(vit, space), choices, bits)
    student.take(plan_scheme(vit.config, space.recipe_of(bits)))
    return student, vit, space, bits


def move(student, space, place, width):
    """Give one choice another width."""
    with torch.no_grad():
        student.bits[place] = width
    scheme = plan_scheme(student.vit.config, space.recipe_of(student.whole_bits()))
    student.take(scheme)


HEADS = RECIPE.override(
    ["layers.blocks.*.attn.proj=W8,2,3", "layers.blocks.*.attn.qkv=W2,4,3,4,2,4,3,4,2"]
)


@pytest.mark.parametrize(
    ("shape", "recipe"),
    [
        *(("three heads", r) for r in (RECIPE, HEADS)),
        *((shape, RECIPE) for shape in ("QK-norm", "registers", "no head")),
    ],
)
def test_it_computes_what_an_allocation_does(shape, recipe):
    student, vit, space, bits = begun(shape, recipe)
    model = switchable(vit, space)
    model.take(plan_scheme(vit.config, space.recipe_of(bits)))
    images = images_for(vit)
    with torch.no_grad():
        expected = model.vit(images, FakeQuantized())
        seen = student(images)
    assert len(seen.attention) == vit.config.depth
    scale = float(expected.abs().max())
    assert float((seen.logits - expected).abs().max()) < 1e-3 * scale  # a tie rounds either way


def test_a_width_uses_a_scale_of_its_own():
    student, _, space, _ = begun()
    place = next(i for i, c in enumerate(space.choices) if (c.layer, c.kind) == (FC1, "W"))
    dense = student.vit.get_submodule(FC1)
    growth = student._tables[dense][1]
    scales = {}
    for width in (3, 5, 3.4, 4.6):
        move(student, space, place, width)
        scales[width] = student.grid(dense)[0].detach()
        assert torch.equal(scales[width], student._model.grid(FC1, round(width)).scale)
    assert not torch.equal(scales[3], scales[5])
    with torch.no_grad():
        growth[5 - 2] = 0.5
    assert torch.allclose(student.grid(dense)[0], scales[5] * torch.tensor(0.5).exp())
    move(student, space, place, 3)
    assert torch.equal(student.grid(dense)[0], scales[3])


def test_what_is_in_use_has_a_gradient_and_no_other_scale_has():
    student, vit, space, bits = begun()
    student(images_for(vit)).logits.square().sum().backward()
    assert student.bits.grad.isfinite().all()
    moved = {c: float(g) for c, g in zip(space.choices, student.bits.grad, strict=True)}
    silent = {c.layer for c, gradient in moved.items() if c.kind == "A" and gradient == 0}
    # of the last block, the head reads the class token alone, which has 8 bits here whatever the others have
    assert silent == {f"blocks.1.{name}" for name in ("attn.proj", "mlp.fc1", "mlp.fc2")}
    assert sum(gradient != 0 for c, gradient in moved.items() if c.kind == "W") > 5
    widths = {c.layer: int(b) for c, b in zip(space.choices, bits, strict=True) if c.kind == "W"}
    for name, growth in student._tables.values():
        used = growth.grad.abs().sum(1)
        assert used.nonzero().flatten().tolist() == [widths[name] - 2], name
    for name, weight in student.vit.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None, name
            assert weight.grad.isfinite().all(), name


def test_settled_widths_stay_and_the_rest_is_trained():
    vit = float_vit()
    recipe = RECIPE.override(["layers.blocks.*.attn=A8", "layers.head=W8A8"])
    space = Space.of(vit.config, recipe, activations=False)
    student = BitsStudent(
        switchable(vit, Space.of(vit.config, RECIPE)),
        [(choice.layer, choice.kind) for choice in space.choices],
        space.uniform(4),
    )
    student.take(plan_scheme(vit.config, space.recipe_of(space.uniform(4))))
    student(images_for(vit)).logits.square().sum().backward()
    assert student.bits.grad.isfinite().all()
    head = student.vit.head
    assert head.scheme.weight.bits == 8
    growth = student._tables[head][1]
    assert growth.grad is not None
    assert growth.grad[8 - 2].abs().sum() > 0


def test_widths_are_kept_between_two_and_eight():
    student, _, _, _ = begun()
    with torch.no_grad():
        student.bits[0], student.bits[1], student.bits[2] = 1.2, 9.7, 4.3
    student.clamp()
    assert student.bits[:3].tolist() == pytest.approx([2.0, 8.0, 4.3])
    assert student.whole_bits()[:3].tolist() == [2, 8, 4]
