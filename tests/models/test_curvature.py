"""Curvature of a model by hand: what one tensor's error does to a classifier of one layer is known exactly."""

import pytest
import torch

from qvit.models.curvature import Curvature, measure_curvature
from qvit.models.floating import Float
from qvit.models.folding import fold
from qvit.models.plan import plan_scheme
from qvit.models.simulated import Simulated
from qvit.models.switching import SwitchableModel
from tests.models.test_switching import RECIPE, uniform
from tests.support import float_vit, images_for


def switchable():
    vit = float_vit(depth=1)
    schemes = {b: plan_scheme(vit.config, uniform(b)) for b in range(2, 9)}
    model = SwitchableModel(fold(vit, plan_scheme(vit.config, RECIPE), seed=0), schemes, "mse")
    model.take(schemes[8])
    return model


def test_listening_changes_no_answer():
    model = switchable()
    images = images_for(model.vit)
    heard = model.vit(images, Curvature(model, range(2, 9)))
    torch.testing.assert_close(heard, model.vit(images, Float()), rtol=1e-4, atol=1e-4)


def test_the_head_costs_what_its_fisher_matrix_says():
    """Of logits the Fisher matrix is diag(p) - p p^T, so that nothing has to be drawn."""
    model = switchable()
    images = images_for(model.vit, 4)
    generator = torch.Generator().manual_seed(0)
    often = images.repeat(60, 1, 1, 1)
    found = measure_curvature(model, often, (2, 4), batch=120, generator=generator)
    head, seen = model.vit.head, []

    class Watching(Float):
        def product(self, x, dense):
            if dense is head:
                seen.append(x)
            return super().product(x, dense)

    chance = model.vit(images, Watching()).softmax(-1)
    for place, bits in enumerate((2, 4)):
        grid = model.grid("head", bits)
        head.scheme = model.scheme("head", bits)
        head.weight_scale.data, head.weight_multiplier = grid
        held = head.quantized_weight()
        error = seen[0] @ (held.values() - head.weight).T
        fisher = torch.diag_embed(chance) - chance.unsqueeze(-1) * chance.unsqueeze(-2)
        expected = 0.5 * torch.einsum("bi,bij,bj->b", error, fisher, error).mean()
        assert abs(float(found["head", "W"][place] / expected) - 1) < 0.25


@pytest.mark.parametrize("kind", ["W", "A"])
@pytest.mark.parametrize("name", ["blocks.0.attn", "blocks.0.attn.proj", "blocks.0.mlp.fc2"])
def test_what_is_told_of_a_tensor_is_what_its_quantization_does(name, kind):
    """KL of the model with that tensor alone at so few bits, by simulation, against the curvature: the mean over what
    rounding might do, of which a small weight shows one.
    """
    if (name, kind) == ("blocks.0.attn", "W"):
        pytest.skip("attention products have no weights")
    model = switchable()
    images = images_for(model.vit, 16)
    generator = torch.Generator().manual_seed(0)
    often = images.repeat(16, 1, 1, 1)
    found = measure_curvature(model, often, (5,), batch=128, generator=generator)
    eight = uniform(8)
    bits = {"W": {"W": 5, "A": 8}, "A": {"W": 8, "A": 5}}[kind]
    text = "A5" if name.endswith("attn") else "".join(f"{k}{b}" for k, b in bits.items())
    few = eight.override([f"layers.{name}={text}"])
    with torch.no_grad():
        model.take(plan_scheme(model.vit.config, eight))
        expected = model.vit(images, Simulated()).double().log_softmax(-1)
        model.take(plan_scheme(model.vit.config, few))
        told = model.vit(images, Simulated()).double().log_softmax(-1)
    divergence = (expected.exp() * (expected - told)).sum(-1).mean()
    assert 0.4 < float(found[name, kind][0] / divergence) < 2.5


def test_every_choice_is_heard_at_every_width():
    model = switchable()
    generator = torch.Generator().manual_seed(0)
    images = images_for(model.vit)
    found = measure_curvature(model, images, range(2, 9), batch=3, generator=generator, heads=True)
    linears = model.vit.config.linears()
    inputs = {(name, "A") for name in linears if name != "patch_embed.proj"}
    weights = {(name, "W") for name in linears}
    heads = {("blocks.0.attn.qkv", "W", i) for i in range(6)}  # of two heads
    heads |= {("blocks.0.attn.proj", "W", i) for i in range(2)}
    assert found.keys() == inputs | weights | heads | {("blocks.0.attn", "A")}
    for losses in found.values():
        assert losses.shape == (7,)
        assert losses[0] > losses[-1] >= 0


def test_losses_of_heads_are_parts_of_those_of_their_layer():
    """Exactly so in qkv, whose rows are the heads'; in the mean in proj, where a row's error is the sum of theirs."""
    model = switchable()
    generator = torch.Generator().manual_seed(0)
    images = images_for(model.vit, 16).repeat(8, 1, 1, 1)
    found = measure_curvature(model, images, (3,), batch=32, generator=generator, heads=True)
    for name, count, tolerance in (("qkv", 6, 1e-6), ("proj", 2, 0.25)):
        key = f"blocks.0.attn.{name}", "W"
        parts = [float(found[*key, head]) for head in range(count)]
        assert min(parts) > 0
        assert sum(parts) == pytest.approx(float(found[key]), rel=tolerance)
