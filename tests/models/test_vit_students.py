"""Students of a ViT: what is quantized, what is trained, and that a step moves them sensibly."""

import pytest
import torch

from qvit.distillation import Trainer
from qvit.models.floating import Float
from qvit.models.simulated import Simulated
from qvit.models.static import StaticDense
from qvit.models.student import Seen
from qvit.models.vit_students import SimulatedStudent
from qvit.models.watching import FloatTeacher
from qvit.recipe import Distillation, Recipe
from tests.distillation.students import simulated_student, small_vit, static_student
from tests.executions import both
from tests.models.test_executions import HEADS
from tests.support import SHAPES, float_vit, images_for

QUIET = [shape for shape in SHAPES if "no head" not in shape]


def students(vit, bits=4):
    return {"static": static_student(vit, bits), "simulated": simulated_student(vit, bits)}


@pytest.mark.parametrize("shape", QUIET)
@torch.no_grad()
def test_every_shape_can_be_watched(shape):
    vit = float_vit(shape)
    images = images_for(vit)
    seen = FloatTeacher(vit)(images)
    assert torch.equal(seen.logits, vit(images, Float()))
    config = vit.config
    tokens = config.num_patches + config.num_prefix_tokens
    for found in (seen, *(s(images) for s in students(vit, 8).values())):
        assert isinstance(found, Seen)
        assert found.prefix == config.num_prefix_tokens
        assert len(found.attention) == len(found.features) == config.depth
        for block in found.attention:
            assert block.output.shape == (3, config.num_heads, tokens, config.head_dim)
            assert block.q.shape == block.k.shape == block.output.shape
        assert found.features[0].shape == (3, tokens, config.embed_dim)


@torch.no_grad()
def test_watching_changes_nothing():
    vit = small_vit()
    student = simulated_student(vit)
    images = images_for(vit)
    assert torch.equal(student(images).logits, student.vit(images, Simulated()))


@torch.no_grad()
def test_eight_static_bits_are_nearly_float():
    vit = small_vit()
    images = images_for(vit, 8)
    exact = FloatTeacher(vit)(images).logits
    student = static_student(vit, 8, activations="minmax")
    student.calibrate(images)
    spread = (exact - exact.mean(0)).abs().mean()
    assert (student(images).logits - exact).abs().mean() < 0.2 * spread


@pytest.mark.parametrize("kind", ["static", "simulated"])
def test_every_linear_has_integers_and_everything_is_trained(kind):
    vit = small_vit()
    student = students(vit)[kind]
    weights = student.integer_weights()
    assert len(weights) == len(vit.config.linears())
    named = dict(student.named_parameters())
    for weight in weights:
        assert named[weight.name] is weight.parameter
        codes = weight.codes(weight.parameter.detach().unsqueeze(0))
        assert torch.equal(codes, codes.round())
        assert codes.abs().max() <= (8 if kind == "static" or "blocks." in weight.name else 127)
    before = {name: p.detach().clone() for name, p in named.items()}
    settings = Distillation.preset("mimiq", lr=1e-3, batch=4, classes=1.0, augment=False)
    trainer = Trainer(FloatTeacher(vit), student, settings, 3)
    for _ in range(3):
        trainer.step(images_for(vit, 4), torch.randint(7, (4,)))
    still = {n for n, p in named.items() if torch.equal(p, before[n])}
    # keys' biases shift all logits of a row alike; a signed step that never clips may stay
    assert not {n for n in still if "zero_point" not in n and "scale" not in n}


def test_a_step_moves_pixel_weights_as_far_as_others():
    """The patch embedding of a folded model takes pixel codes, a hundred times as large as pixels."""
    vit = small_vit()
    student = simulated_student(vit, 8)
    images = images_for(vit, 4)
    trainer = Trainer(FloatTeacher(vit), student, Distillation.preset("kl-classes", lr=1e-3), 3)
    weights = {w.name: w.parameter for w in student.integer_weights()}
    before = {name: p.detach().clone() for name, p in weights.items()}
    trainer.step(images, torch.randint(7, (4,)))
    moved = {
        n: float((p.detach() - before[n]).norm() / before[n].norm()) for n, p in weights.items()
    }
    embed = moved.pop("vit.patch_embed.proj.weight")
    assert 0 < embed < 20 * max(moved.values())


def test_the_ends_may_have_bits_of_their_own():
    vit = small_vit()
    student = static_student(vit, 4, ends=8)
    bits = {
        n: m.quantizer.bits for n, m in student.vit.named_modules() if isinstance(m, StaticDense)
    }
    assert bits["patch_embed.proj"] == bits["head"] == 8
    assert set(bits.values()) == {4, 8}
    assert student.vit.patch_embed.proj.input is None
    assert student.vit.head.input.bits == 8


@torch.no_grad()
def test_outputs_of_softmax_and_gelu_may_stay_as_they_are():
    vit = small_vit()
    student = static_student(vit, 4, activations="minmax", softmax="float", gelu="float").vit
    x = torch.rand(2, 3, 5, 5)
    for block in student.blocks:
        assert torch.equal(block.attn.quantizers.softmax(x), x)
        assert torch.equal(block.mlp.fc2.input(x), x)
        assert len(block.attn.proj.input(x).unique()) <= 16
        assert len(block.attn.quantizers.v(x).unique()) <= 16
    assert torch.equal(
        static_student(vit, softmax="float").vit.blocks[0].attn.quantizers.softmax(x), x
    )


def test_scales_of_heads_move_as_those_of_their_bits():
    """A row's factor is that of a Linear whose rows all have its bits; columns share one."""

    def factors(qkv, proj):
        settings = [f"layers.blocks.0.attn.qkv=W{qkv}", f"layers.blocks.0.attn.proj=W{proj}"]
        recipe = Recipe.preset("plain", weight_bits=4, activation_bits=4).override(settings)
        simulated, _ = both(float_vit("three heads", depth=1), recipe)
        SimulatedStudent(simulated)
        attn = simulated.get_submodule("blocks.0.attn")
        found = []
        for scale in (attn.qkv.weight_scale, attn.proj.weight_scale):  # pyright: ignore[reportAttributeAccessIssue]
            scale.sum().backward()  # a gradient of one, which the hook multiplies
            found.append(scale.grad)
        return [*found, attn.proj.weight_multiplier]  # pyright: ignore[reportAttributeAccessIssue]

    mixed, (four, *_), (two, *_) = (
        factors("4,2,4,2,4,2,4,2,4", "8,2,4"),
        factors("4", "4"),
        factors("2", "4"),
    )
    rows = mixed[0].view(9, 32)
    assert torch.equal(rows[::2].flatten(), four[:160])
    assert torch.equal(rows[1::2].flatten(), two[:128])
    assert two[0] > four[0] > 0
    # 1 / sqrt(weights a scale * largest code, the mean of 127, 1 and 7), over the mean square of the multipliers
    assert len(mixed[1].unique()) == 1
    assert mixed[1][0] < (96 * 45) ** -0.5
    assert torch.allclose(mixed[1] * mixed[2].square().mean(), torch.tensor((96 * 45) ** -0.5))


def test_a_student_whose_heads_differ_is_trained():
    vit = float_vit("three heads", depth=1)
    simulated, _ = both(vit, HEADS["wide"])
    student, images = SimulatedStudent(simulated), images_for(vit, 4)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    settings = Distillation.preset("mimiq", lr=1e-3, batch=4, classes=1.0, augment=False)
    trainer = Trainer(FloatTeacher(vit), student, settings, 2)
    trainer.step(images, torch.randint(7, (4,)))
    for name, parameter in student.named_parameters():
        if "attn" in name:
            assert not torch.equal(parameter, before[name]), name
