"""Rounding that is learned block after block: what it ends with, what it is worth, and that it repeats itself."""

import copy
import math

import pytest
import torch

from qvit.deployment.conversion import to_integers
from qvit.distillation import Pool
from qvit.distillation import reconstruction as module
from qvit.distillation.reconstruction import exponent, reconstruct
from qvit.errors import QvitError, UsageError
from qvit.models.calibration import set_weight_ranges
from qvit.models.dense import Dense
from qvit.models.floating import Float
from qvit.models.folding import fold
from qvit.models.integer import Integer
from qvit.models.plan import plan_scheme
from qvit.models.relaxed import Relaxed, relax
from qvit.models.simulated import Simulated
from qvit.models.static import Static, StaticDense
from qvit.quant.slices import split_slices
from qvit.recipe import Recipe, Reconstruction
from qvit_kernels.reference import code_range
from tests.distillation.students import static_student
from tests.executions import both
from tests.models.test_executions import HEADS
from tests.support import SHAPES, float_vit, images_for

QUICK = Reconstruction(steps=12, batch=4, lr=0.1, scale_lr=0.0)


def folded(vit, preset="qvit", bits=3):
    recipe = Recipe.preset(preset, weight_bits=bits, activation_bits=8)
    return set_weight_ranges(fold(vit, plan_scheme(vit.config, recipe), seed=0))


def pool_for(vit, count):
    return Pool(images_for(vit, count).half())


def dense_of(vit):
    return {name: m for name, m in vit.named_modules() if isinstance(m, Dense)}


@torch.no_grad()
def error(vit, student, images):
    return (student(images, Simulated()) - vit(images, Float())).square().mean()


def test_a_model_whose_rounding_was_learned_is_closer_on_images_it_has_not_seen():
    vit = float_vit("three heads")
    pool, unseen = pool_for(vit, 96), images_for(vit, 32)
    student = folded(vit, "plain")
    nearest = error(vit, student, unseen)
    settings = Reconstruction(steps=80, lr=0.1)
    found = reconstruct(vit, student, pool, settings, seed=0)
    assert error(vit, student, unseen) < 0.75 * nearest
    assert all(block["learned"] < 0.6 * block["nearest"] for block in found)
    assert all(0.01 < block["changed"] < 0.5 for block in found)
    assert all(block["undecided"] < 0.15 for block in found)


def test_weights_end_on_grids_that_stay_and_nothing_else_moves():
    vit, finished = float_vit(), []
    before, after = folded(vit), folded(vit)
    reconstruct(vit, after, pool_for(vit, 6), QUICK, seed=0, done=finished.append)
    moved = []
    for name, new in dense_of(after).items():
        old, weight = dense_of(before)[name], new.quantized_weight()
        torch.testing.assert_close(new.steps(), old.steps(), rtol=0, atol=0)
        moved.append(not torch.equal(old.weight, new.weight))
        if moved[-1]:
            torch.testing.assert_close(new.weight, weight.values())
            # one of both neighbours of the float weight, or the end of the grid
            apart = (weight.codes - old.quantized_weight().codes).abs()
            assert apart.max() <= 1
    assert moved == [False] + [True] * 8 + [False]
    assert finished == ["block 1", "block 2"]
    rest = {n: p for n, p in after.named_parameters() if not n.endswith(".weight") or "norm" in n}
    for name, parameter in before.named_parameters():
        if name in rest:
            assert torch.equal(parameter, rest[name]), name
    assert all(p.requires_grad and p.grad is None for p in after.parameters())


def test_the_integers_that_are_packed_are_the_ones_that_were_learned():
    vit = float_vit()
    student = folded(vit, bits=4)
    reconstruct(vit, student, pool_for(vit, 6), QUICK, seed=0)
    packed = to_integers(student, plan_scheme(vit.config, Recipe.preset("qvit", weight_bits=4)))
    images = images_for(vit, 4)
    with torch.no_grad():
        ours, theirs = student(images, Simulated()), packed(images, Integer("reference"))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_scales_may_be_learned_too():
    vit = float_vit()
    before, after = folded(vit), folded(vit)
    settings = Reconstruction(steps=12, batch=4, lr=0.1)
    reconstruct(vit, after, pool_for(vit, 6), settings, seed=0)
    for name, new in dense_of(after).items():
        ratio = new.weight_scale / dense_of(before)[name].weight_scale
        if ".attn." in name or ".mlp." in name:
            assert 0 < (ratio - 1).abs().max() < 0.02
            weight = new.quantized_weight()
            torch.testing.assert_close(new.weight, weight.values())
        else:
            assert torch.equal(ratio, torch.ones_like(ratio))


@pytest.mark.parametrize("weight_range", ["minmax", "mse"])
def test_static_students_are_rounded_on_grids_that_stay(weight_range, tmp_path):
    vit = float_vit("three heads")
    pool = pool_for(vit, 48)
    images, weights = pool.images.float(), {"range": weight_range}

    before = static_student(vit, 3, weights=weights, activations="mse").vit
    whole, broken, continued = (copy.deepcopy(before) for _ in range(3))

    @torch.no_grad()
    def apart(found):
        return (found(images, Static()) - vit(images, Float())).square().mean()

    settings = Reconstruction(steps=30, lr=0.1, scale_lr=0.0)
    found = reconstruct(vit, whole, pool, settings, seed=0)
    assert all(block["learned"] < 0.9 * block["nearest"] for block in found)
    assert apart(whole) < 0.9 * apart(before)
    for (name, old), new in zip(before.named_modules(), whole.modules(), strict=True):
        if isinstance(old, StaticDense) and name.startswith("blocks"):
            torch.testing.assert_close(new.steps(), old.steps(), rtol=0, atol=0)
            torch.testing.assert_close(new.weight, new.codes_of(new.weight) * new.steps())
            assert (new.codes_of(new.weight) - old.codes_of(old.weight)).abs().max() <= 1

    def stop(name):
        raise KeyboardInterrupt(name)

    with pytest.raises(KeyboardInterrupt, match="block 1"):
        reconstruct(vit, broken, pool, settings, seed=0, folder=tmp_path, done=stop)
    assert reconstruct(vit, continued, pool, settings, seed=0, folder=tmp_path) == found
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, continued.state_dict()[name]), name


@torch.no_grad()
def test_a_relaxed_block_begins_at_its_float_weights():
    vit = float_vit()
    student = folded(vit)
    block = student.blocks[0]
    x = student.begin(images_for(vit), Simulated())
    soft, nearest = block(x, Relaxed(relax(block))), block(x, Simulated())
    for dense in block.linears():  # as far as the grids reach: 3 bits cut off what is large
        steps = dense.steps().repeat_interleave(dense.weight.shape[1] // dense.steps().shape[1], 1)
        low, high = code_range(3)
        dense.weight.copy_((dense.weight / steps).clamp(low, high) * steps)
    wanted = block(x, Float())
    # what is left is the quantization of activations, to 8 bits
    assert (soft - wanted).square().mean() < 0.01 * (nearest - wanted).square().mean()


def test_the_seed_decides_and_a_run_repeats_itself():
    vit = float_vit()
    pool = pool_for(vit, 9)

    def codes(seed):
        student = folded(vit)
        reconstruct(vit, student, pool, QUICK, seed=seed)
        return [dense.weight for dense in dense_of(student).values()]

    first, again, other = codes(0), codes(0), codes(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_an_interrupted_run_ends_in_the_same_bits(tmp_path):
    vit = float_vit()
    pool = pool_for(vit, 6)
    whole, broken, continued = folded(vit), folded(vit), folded(vit)
    found = reconstruct(vit, whole, pool, QUICK, seed=0)

    def stop(name):
        raise KeyboardInterrupt(name)

    with pytest.raises(KeyboardInterrupt, match="block 1"):
        reconstruct(vit, broken, pool, QUICK, seed=0, folder=tmp_path, done=stop)
    finished = []
    again = reconstruct(vit, continued, pool, QUICK, seed=0, folder=tmp_path, done=finished.append)
    assert finished == ["block 2"]
    assert again == found
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, continued.state_dict()[name]), name
    with pytest.raises(UsageError, match=r"another run .*seed: 0 there, 1 now"):
        reconstruct(vit, folded(vit), pool, QUICK, seed=1, folder=tmp_path)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_can_be_rounded(shape):
    vit = float_vit(shape)
    settings = Reconstruction(steps=2, batch=2)
    student = folded(vit)
    reconstruct(vit, student, pool_for(vit, 3), settings, seed=0)
    assert all(p.isfinite().all() for p in student.parameters())


def test_a_loss_that_is_not_finite_is_told(monkeypatch):
    vit = float_vit()
    monkeypatch.setattr(module, "_error", lambda found, target: (found * math.nan).mean())
    with pytest.raises(QvitError, match=r"step 0 .* not finite; lower weights\.reconstruction\.lr"):
        reconstruct(vit, folded(vit), pool_for(vit, 3), QUICK, seed=0)


def test_the_pressure_begins_late_and_grows():
    settings = Reconstruction(steps=10, beta=20.0)
    found = [exponent(step, settings) for step in range(10)]
    assert found[:2] == [None, None]
    assert found[2] == 20.0
    assert found[2:] == sorted(found[2:], reverse=True)
    assert found[6] == pytest.approx(11.0)
    assert found[9] == pytest.approx(2.0, abs=1.0)
    assert exponent(0, Reconstruction(steps=1, free=0.0, beta=8.0)) == 8.0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": 0}, r"weights\.reconstruction\.steps = 0: expected 1 or more"),
        ({"lr": math.nan}, r"weights\.reconstruction\.lr = nan"),
        ({"free": 1.5}, "expected 0 to 1"),
        ({"beta": 2.0, "beta_final": 3.0}, "exchange them"),
    ],
)
def test_impossible_settings(changes, told):
    with pytest.raises(UsageError, match=told):
        Reconstruction(**changes)


@torch.no_grad()
def test_heads_of_any_bits_learn_within_their_codes():
    vit = float_vit("three heads", depth=1)
    student, _ = both(vit, HEADS["wide"])
    before = {name: dense.quantized_weight() for name, dense in dense_of(student).items()}
    with torch.enable_grad():
        reconstruct(vit, student, pool_for(vit, 6), QUICK, seed=0)
    for name in ("blocks.0.attn.qkv", "blocks.0.attn.proj"):
        dense = dense_of(student)[name]
        scheme, weight = dense.scheme.weight, dense.quantized_weight()
        torch.testing.assert_close(dense.weight, weight.values())
        assert 0 < (weight.codes - before[name].codes).abs().max() <= 1
        for part, bits in zip(split_slices(weight.codes, scheme), scheme.slices, strict=True):
            low, high = code_range(bits)
            assert low <= part.min() < 0 < part.max() <= high
