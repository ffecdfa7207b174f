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


def begun(shape="three heads", recipe=RECIPE, *, heads=False):
    """A student at drawn widths, and what it was made of."""
    vit = float_vit(shape)
    space = Space.of(vit.config, recipe, heads=heads)
    torch.manual_seed(0)
    bits = torch.randint(2, 9, (len(space.choices),))
    student = BitsStudent(switchable(vit, space), [c.key for c in space.choices], bits)
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
FINE = RECIPE.override(["weights.group=4"])  # a part of a head's columns


@pytest.mark.parametrize(
    ("shape", "recipe", "heads"),
    [
        *(("three heads", recipe, False) for recipe in (RECIPE, HEADS)),
        *(("three heads", recipe, True) for recipe in (RECIPE, FINE)),
        *((shape, RECIPE, False) for shape in ("QK-norm", "registers", "no head")),
    ],
)
def test_it_computes_what_an_allocation_does(shape, recipe, heads):
    student, vit, space, bits = begun(shape, recipe, heads=heads)
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


@pytest.mark.parametrize("layer", ["qkv", "proj"])
@pytest.mark.parametrize("alike", [False, True])
def test_every_head_has_a_gradient_of_its_own(layer, alike):
    """With scales too small for its weights, so that they are clipped; whether or not heads have the same width."""
    student, vit, space, _ = begun(heads=True)
    name = f"blocks.0.attn.{layer}"
    places = [i for i, c in enumerate(space.choices) if (c.layer, c.kind) == (name, "W")]
    assert len(places) == (9 if layer == "qkv" else 3)
    with torch.no_grad():
        student.bits[places] = torch.tensor([3.0] + [3.0 if alike else 4.0] * (len(places) - 1))
        growth = dict(student._tables.values())[name].fill_(-1.0)
    student.take(plan_scheme(vit.config, space.recipe_of(student.whole_bits())))
    student(images_for(vit)).logits.square().sum().backward()
    assert student.bits.grad is not None
    assert student.bits.grad[places].ne(0).all()
    assert growth.grad is not None
    used = growth.grad.abs()
    widths = {3} if alike else {3, 4} if layer == "qkv" else {4}
    assert {width + 2 for width in used.sum(1).nonzero().flatten().tolist()} == widths
    if layer == "qkv" and not alike:  # a row's scale is that of its head's width
        rows = len(used[0]) // 9
        assert used[3 - 2].nonzero().flatten().tolist() == list(range(rows))


def test_a_head_keeps_its_scales_when_another_changes_its_width():
    """And its weights have been trained since."""
    student, _, space, _ = begun(heads=True)
    name = "blocks.0.attn.qkv"
    places = [i for i, c in enumerate(space.choices) if (c.layer, c.kind) == (name, "W")]
    dense = student.vit.get_submodule(name)
    with torch.no_grad():
        student.bits[places] = 3.0
        dense.weight *= 1.3
        dict(student._tables.values())[name].fill_(0.26)
    move(student, space, places[0], 3)
    before = student.grid(dense).steps().detach()
    move(student, space, places[-1], 4)
    after = student.grid(dense).steps().detach()
    rows = len(before) // 9
    assert torch.equal(after[:-rows], before[:-rows])
    assert not torch.equal(after[-rows:], before[-rows:])


def test_settled_widths_stay_and_the_rest_is_trained():
    vit = float_vit()
    recipe = RECIPE.override(["layers.blocks.*.attn=A8", "layers.head=W8A8"])
    space = Space.of(vit.config, recipe, activations=False)
    student = BitsStudent(
        switchable(vit, Space.of(vit.config, RECIPE)),
        [choice.key for choice in space.choices],
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
