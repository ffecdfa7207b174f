from functools import partial

import pytest
import torch

from qvit.models import rounding
from qvit.models.calibration import set_weight_ranges
from qvit.models.dense import Dense
from qvit.models.floating import Float
from qvit.models.folding import fold
from qvit.models.plan import plan_scheme
from qvit.models.rounding import round_weights
from qvit.models.simulated import Simulated
from qvit.quant.slices import split_slices
from qvit.recipe import Recipe
from qvit_kernels.reference import code_range
from tests.executions import both
from tests.models.test_executions import HEADS
from tests.support import SHAPES, float_vit, images_for


def folded(vit, preset="qvit"):
    recipe = Recipe.preset(preset, weight_bits=3, activation_bits=8)
    return set_weight_ranges(fold(vit, plan_scheme(vit.config, recipe), seed=0))


def dequantized(dense):
    return dense.quantized_weight().values()


@torch.no_grad()
def error(vit, student, images):
    return (student(images, Simulated()) - vit(images, Float())).square().mean()


def test_a_rounded_model_is_closer_on_images_it_has_not_seen():
    vit = float_vit("three heads")
    images = images_for(vit, count=288)
    nearest = error(vit, folded(vit, "plain"), images[:32])
    rounded = error(vit, round_weights(folded(vit, "plain"), images[32:], 0.01), images[:32])
    assert rounded < 0.75 * nearest


@pytest.mark.parametrize("refit", [False, True])
def test_weights_end_on_their_grids_and_the_ends_are_left_alone(refit):
    vit = float_vit()
    before, after, finished = folded(vit), folded(vit), []
    round_weights(after, images_for(vit, count=4), 0.01, finished.append, refit=refit)
    pairs = [
        (a, b)
        for a, b in zip(before.modules(), after.modules(), strict=True)
        if isinstance(a, Dense)
    ]
    moved = []
    for old, new in pairs:
        moved.append(not torch.equal(old.quantized_weight().codes, new.quantized_weight().codes))
        assert torch.equal(new.steps(), old.steps()) == (not moved[-1] or not refit)
        if moved[-1]:
            torch.testing.assert_close(new.weight, dequantized(new))
    assert moved == [False] + [True] * 8 + [False]
    assert finished == ["block 1", "block 2"]


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_what_a_rounded_block_hands_on_is_what_it_computes(shape):
    """Later blocks are rounded for it; images come in parts, and the last of them is smaller."""
    vit = float_vit(shape)
    block = folded(vit).blocks[0]
    x = torch.randn(5, 7, vit.config.embed_dim, generator=torch.Generator().manual_seed(0))
    found = rounding._round_block(
        block, x.split(2), partial(rounding._round, damping=0.3, refit=True)
    )
    torch.testing.assert_close(torch.cat(found), block(x, Simulated()))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_can_be_rounded(shape):
    vit = float_vit(shape)
    found = round_weights(folded(vit), images_for(vit, count=2), 0.01)
    assert all(p.isfinite().all() for p in found.parameters())


@torch.no_grad()
def test_heads_end_on_their_grids():
    vit = float_vit("three heads", depth=1)
    simulated, _ = both(vit, HEADS["wide"])
    attn = simulated.get_submodule("blocks.0.attn")
    before = [dense.quantized_weight() for dense in (attn.qkv, attn.proj)]  # pyright: ignore[reportAttributeAccessIssue]
    round_weights(simulated, images_for(vit, count=4), 0.01)
    after = [dense.quantized_weight() for dense in (attn.qkv, attn.proj)]  # pyright: ignore[reportAttributeAccessIssue]
    for dense, old, new in zip((attn.qkv, attn.proj), before, after, strict=True):  # pyright: ignore[reportAttributeAccessIssue]
        assert not torch.equal(new.codes, old.codes)
        torch.testing.assert_close(dense.weight, new.values())
        scheme = dense.scheme.weight
        for part, bits in zip(split_slices(new.codes, scheme), scheme.slices, strict=True):
            low, high = code_range(bits)
            assert low <= part.min() < 0 < part.max() <= high
