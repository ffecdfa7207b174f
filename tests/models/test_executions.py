"""The executions of one definition: simulated and integer agree step by step, on the same inputs."""

import pytest
import torch

from qvit.models.dense import Dense, IntegerDense
from qvit.models.fake_quantized import FakeQuantized
from qvit.models.floating import Float
from qvit.models.integer import Integer
from qvit.models.simulated import Simulated
from qvit.quant.slices import split_slices
from qvit.recipe import Recipe
from qvit_kernels import ops
from qvit_kernels.reference import Quantized, code_range
from tests.executions import SideBySide, both
from tests.support import SHAPES, float_vit, images_for

RECIPES = {
    "W8A8": Recipe.preset("qvit", weight_bits=8, activation_bits=8),
    "W4A8": Recipe.preset("qvit", weight_bits=4, activation_bits=8),
    "W4A4": Recipe.preset("qvit", weight_bits=4, activation_bits=4),
    "four widths": Recipe.preset("qvit", weight_bits=4, activation_bits=5).override(
        ["attention.bits=6", "attention.softmax_bits=7"]
    ),
    "W3A3": Recipe.preset("qvit", weight_bits=3, activation_bits=3),
    # with 3 bits in the softmax, too, its outputs are ratios of a few small numbers, many of them ties
    "W3A3, one scale a token": Recipe.preset("plain", weight_bits=3, activation_bits=3).override(
        ["activations.prefix_bits=8", "attention.bits=8", "attention.softmax_bits=8"]
    ),
    "W3A5 without groups": Recipe.preset("plain", weight_bits=3, activation_bits=5),
    "W4A4, weight groups, bf16 residual": Recipe.preset(
        "qvit", weight_bits=4, activation_bits=4
    ).override(["weights.group=16", "residual=bfloat16"]),
    "mixed": Recipe.preset("qvit", weight_bits=4, activation_bits=4).override(
        [
            "layers.*.*=W2",
            "layers.blocks.0.*.*=W8A4",
            "layers.blocks.0.attn.proj=W3A6",
            "layers.blocks.0.mlp.fc2=W4A8",
            "layers.blocks.*.attn.qkv=W6A2",
            "layers.blocks.0.attn=A5",
            "layers.head=W5A3",
        ]
    ),
}


# Of three heads: packed weights with groups, weights of which some are too wide to be packed, and no groups in rows.
HEADS = {
    name: RECIPES["W4A4"].override([f"layers.blocks.*.attn.{s}" for s in settings])
    for name, settings in {
        "packed": ("qkv=W4,3,2,4,4,4,2,2,3", "proj=W4,2,3"),
        "wide": ("qkv=W8,2,6,4,5,3,7,7,4A6", "proj=W5,8,2"),
        "no groups": ("qkv=W8,5,8,6,5,7,8,8,8", "proj=W5,8,7A3"),
    }.items()
}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("recipe", HEADS)
def test_weights_of_heads_may_differ_in_their_bits(recipe, backend):
    simulated, integer = both(float_vit("three heads", depth=1), HEADS[recipe])
    pair = SideBySide(simulated, integer)
    with torch.inference_mode(), ops.use_backend(backend):
        simulated(images_for(simulated), pair)
    assert pair.compared == 1 + 9 + 2


@pytest.mark.parametrize("recipe", HEADS)
def test_codes_of_heads_stay_in_their_bits(recipe):
    simulated, integer = both(float_vit("three heads", depth=1), HEADS[recipe])
    for name in ("qkv", "proj"):
        dense = integer.get_submodule(f"blocks.0.attn.{name}")
        assert isinstance(dense, IntegerDense)
        weight, codes = dense.scheme.weight, dense.codes_unpacked()
        for part, bits in zip(split_slices(codes, weight), weight.slices, strict=True):
            low, high = code_range(bits)
            assert low <= part.min() < low / 2
            assert high / 2 < part.max() <= high
        source = simulated.get_submodule(f"blocks.0.attn.{name}")
        assert isinstance(source, Dense)
        expected = source.quantized_weight()
        assert torch.equal(codes.float(), expected.codes)
        torch.testing.assert_close(dense.values().float(), expected.values())
        stored = dense.stored
        if weight.bits > 4:  # no kernel multiplies int8 weights
            assert stored.multiplier is None
            assert torch.equal(stored.codes.float(), expected.integers())


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_integers_equal_simulation_step_by_step(recipe, backend):
    simulated, integer = both(float_vit("three heads"), RECIPES[recipe])
    pair = SideBySide(simulated, integer)
    with torch.inference_mode(), ops.use_backend(backend):
        simulated(images_for(simulated), pair)
    assert pair.compared == 1 + 2 * 9 + 2


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_runs_in_integers(shape):
    simulated, integer = both(float_vit(shape), RECIPES["W4A4"])
    pair = SideBySide(simulated, integer)
    images = images_for(simulated)
    with torch.inference_mode():
        expected = simulated(images, pair)
        found = integer(images, Integer())
    assert found.shape == expected.shape
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("shape", ["distilled", "registers", "average pooling, no class token"])
def test_tokens_of_8_bits_before_the_patches(shape):
    simulated, integer = both(float_vit(shape, depth=1), RECIPES["W3A3"])
    seen = []

    class Watching(Integer):
        def residual(self, x, h, dense):
            seen.append(h.codes)
            return super().residual(x, h, dense)

    images = images_for(simulated)
    with torch.inference_mode():
        simulated(images, SideBySide(simulated, integer))
        integer(images, Watching())
    first = simulated.config.num_prefix_tokens
    for codes in seen:
        assert codes.dtype == torch.int8
        assert codes[:, first:].abs().max() == 4
        assert first == 0 or codes[:, :first].abs().max() == 127


def test_simulated_sums_are_exact_where_the_prefix_has_8_bits():
    """Its codes pass what fp32 holds, where those of 3 bits would not."""
    recipe = RECIPES["W3A3, one scale a token"].override(["weights.bits=8"])
    simulated, _ = both(float_vit(mlp_ratio=48.0, depth=1), recipe)
    fc2 = simulated.get_submodule("blocks.0.mlp.fc2")
    width = simulated.config.hidden_dim
    assert width * 127 * 4 < 2**24 < width * 100 * 100
    codes, weights = torch.randint(100, 128, (1, 2, width)), torch.randint(100, 128, (64, width))
    with torch.no_grad():
        fc2.weight.copy_(weights / 128)
        fc2.weight_scale.fill_(1 / 128)
        found = Simulated().product(Quantized(codes.float(), torch.ones(1, 2, 1)), fc2)
    assert torch.equal(found, (codes @ weights.T).float() / 128 + fc2.bias)


@pytest.mark.parametrize("shape", SHAPES)
def test_eight_bits_stay_close_to_float(shape):
    vit = float_vit(shape)
    _, integer = both(vit, RECIPES["W8A8"])
    images = images_for(vit, count=8)
    with torch.inference_mode():
        expected, found = vit(images, Float()), integer(images, Integer())
    assert (found - expected).abs().mean() < 0.05 * expected.std()


def test_gradients_reach_every_weight_and_scale():
    simulated, _ = both(float_vit("LayerScale"), RECIPES["W4A4"])
    simulated(images_for(simulated), Simulated()).square().sum().backward()
    for name, parameter in simulated.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_image_of_the_mean_colour_keeps_its_value():
    vit = float_vit()
    simulated, _ = both(vit, RECIPES["W4A4"])
    embed, images = simulated.patch_embed, torch.zeros(1, 3, 32, 32)
    weight = embed.proj.quantized_weight().values()
    rest = (embed.offset.round() - embed.offset).repeat_interleave(8 * 8)
    with torch.inference_mode():
        error = Simulated().embed(images, embed) - Float().embed(images, vit.patch_embed)
    # all that is left is that the mean is no whole pixel value
    torch.testing.assert_close(error, (weight * rest).sum(1).expand_as(error), rtol=0, atol=1e-3)
    assert embed.proj.bias.abs().max() > 1


def test_residual_stream_has_its_dtype():
    seen = []

    class Watching(Simulated):
        def norm(self, x, norm, to):
            seen.append(x.dtype)
            return super().norm(x, norm, to)

    recipe = RECIPES["W8A8"].override(["residual=bfloat16"])
    simulated, integer = both(float_vit(), recipe)
    images = images_for(simulated)
    with torch.inference_mode():
        simulated(images, Watching())
        assert set(seen) == {torch.bfloat16}
        torch.testing.assert_close(integer(images, Integer()), simulated(images, Simulated()))


def test_simulated_sums_are_exact_beyond_what_fp32_holds():
    simulated, integer = both(float_vit(mlp_ratio=48.0, depth=1), RECIPES["W8A8"])
    assert simulated.config.hidden_dim * 127 * 127 > 2**24
    pair = SideBySide(simulated, integer)
    fc2 = simulated.get_submodule("blocks.0.mlp.fc2")
    with torch.no_grad():  # all weights and codes at the top of their range, one odd one out
        fc2.weight.fill_(1.0)
        fc2.weight_scale.fill_(1 / 127)
        codes = torch.full((1, 2, simulated.config.hidden_dim), 127.0)
        codes[..., 0] = 126.0
        partner = pair.partner[id(fc2)]
        partner.weight.fill_(127)
        partner.weight_scale.fill_(1 / 127)
    with torch.inference_mode():
        x = torch.zeros(1, 2, 64)
        pair.residual(x, Quantized(codes, torch.ones(1, 2, 1)), fc2)
    assert pair.compared == 1


@pytest.mark.parametrize("images_dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_images_of_other_float_types(images_dtype):
    _, integer = both(float_vit(), RECIPES["W8A8"])
    images = images_for(integer).to(images_dtype)
    with torch.inference_mode():
        logits = integer(images, Integer())
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, integer(images.float(), Integer()), rtol=0.1, atol=0.1)


def test_empty_batch():
    _, integer = both(float_vit(), RECIPES["W4A4"])
    with torch.inference_mode():
        assert integer(torch.zeros(0, 3, 32, 32), Integer()).shape == (0, 7)


def test_autocast_and_default_dtype_change_nothing():
    simulated, integer = both(float_vit("odd widths"), RECIPES["W4A4"])
    images = images_for(simulated)
    for model, run in (
        (simulated, Simulated()), (simulated, FakeQuantized()), (integer, Integer()),
    ):  # fmt: skip
        with torch.no_grad():
            expected = model(images, run)
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(model(images, run), expected)
            torch.set_default_dtype(torch.float64)
            try:
                assert torch.equal(model(images, run), expected)
            finally:
                torch.set_default_dtype(torch.float32)


def test_training_after_inference_with_an_odd_block():
    simulated, _ = both(float_vit("odd widths"), RECIPES["W4A4"])
    with torch.inference_mode():
        simulated(images_for(simulated), Simulated())
    simulated(images_for(simulated), Simulated()).sum().backward()
