"""Curvature of a model by hand: what one tensor's error does to a classifier of one layer is known exactly."""

import torch

from qvit.models.curvature import Curvature, measure_curvature
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
    assert torch.equal(heard, model.vit(images, Simulated()))


def test_the_head_costs_what_its_fisher_matrix_says():
    """Of logits the Fisher matrix is diag(p) - p p^T, so that nothing has to be drawn."""
    model = switchable()
    images = images_for(model.vit, 4)
    generator = torch.Generator().manual_seed(0)
    found = measure_curvature(model, images, batch=4, labels=60, generator=generator)
    head, seen = model.vit.head, {}

    class Watching(Simulated):
        def product(self, x, dense):
            seen[dense] = x.values()
            return super().product(x, dense)

    chance = model.vit(images, Watching()).softmax(-1)
    for bits in (2, 4):
        grid = model.widths["head"].grids[bits]
        kept = head.scheme
        head.scheme = model.widths["head"].schemes[bits]
        head.weight_scale.data, head.weight_multiplier = grid.scale, grid.multiplier
        held = head.quantized_weight()
        error = seen[head] @ (held.integers() * held.scale.unsqueeze(-1) - head.weight).T
        head.scheme = kept
        fisher = torch.diag_embed(chance) - chance.unsqueeze(-1) * chance.unsqueeze(-2)
        expected = 0.5 * torch.einsum("bi,bij,bj->b", error, fisher, error).mean()
        assert abs(found["head", "W"][bits] / float(expected) - 1) < 0.25


def test_every_choice_is_heard_at_every_width():
    model = switchable()
    generator = torch.Generator().manual_seed(0)
    found = measure_curvature(model, images_for(model.vit), batch=3, labels=1, generator=generator)
    inputs = {(name, "A") for name in model.widths if name != "patch_embed.proj"}
    weights = {(name, "W") for name in model.widths}
    assert found.keys() == inputs | weights | {("blocks.0.attn", "A")}
    for losses in found.values():
        assert losses.keys() == set(range(2, 9))
        assert losses[2] > losses[8] >= 0
