import pytest
import timm
import torch

from qvit.models.dense import Dense
from qvit.models.floating import Float
from qvit.models.timm_export import write_model
from qvit.models.unfolding import unfold
from qvit.models.vit import ViT
from qvit.recipe import Recipe
from tests.executions import both
from tests.support import SHAPES, SMALL, float_vit, images_for, timm_vit

RECIPES = {
    "W4A4": Recipe.preset("qvit", weight_bits=4, activation_bits=4),
    "W8A8": Recipe.preset("qvit", weight_bits=8, activation_bits=8),
}


def with_quantized_weights(simulated: ViT) -> ViT:
    """The simulated model, in place: its weights rounded to their grids, so that Float quantizes no activation."""
    for module in simulated.modules():
        if isinstance(module, Dense):
            module.weight.copy_(module.quantized_weight().values())
    return simulated


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_float_timm_model_computes_what_the_weights_stand_for(shape, recipe):
    with torch.no_grad():
        simulated, integer = both(float_vit(shape), RECIPES[recipe])
        images = images_for(integer)
        expected = with_quantized_weights(simulated)(images, Float())
        unfolded = unfold(integer)
        torch.testing.assert_close(unfolded(images, Float()), expected, rtol=1e-4, atol=1e-4)
        name, arguments = SHAPES[shape]
        with torch.device("meta"):
            model = timm.create_model(name, **{**SMALL, **arguments})
        write_model(unfolded, model)
        torch.testing.assert_close(model.eval()(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", ["plain", "LayerScale", "pre-norm, no patch bias"])
def test_state_is_that_of_timm_s_architecture(shape):
    model = timm_vit(shape)
    _, integer = both(float_vit(shape), RECIPES["W8A8"])
    with torch.device("meta"):
        name, arguments = SHAPES[shape]
        found = timm.create_model(name, **{**SMALL, **arguments})
    write_model(unfold(integer), found)
    assert not model.load_state_dict(found.state_dict(), strict=True).missing_keys
    # a step of an 8-bit grid, not a rotation, lies between the weights of fc1 and those it came from
    original = timm_vit(shape).state_dict()["blocks.1.mlp.fc1.weight"]
    assert (found.state_dict()["blocks.1.mlp.fc1.weight"] - original).abs().max() < 0.02


def test_bias_that_training_gave_a_linear_is_kept():
    _, integer = both(float_vit("no QKV bias"), RECIPES["W8A8"])
    integer.blocks[0].attn.qkv.bias.fill_(0.5)
    model = timm_vit("no QKV bias")
    write_model(unfold(integer), model)
    assert model.blocks[0].attn.qkv.bias.eq(0.5).all()
    assert model.blocks[1].attn.qkv.bias is None


def test_written_weights_are_copies():
    vit = float_vit()
    model = timm_vit()
    write_model(vit, model)
    model.head.weight.data.zero_()
    assert vit.head.weight.any()


def test_model_of_another_shape_is_refused():
    with pytest.raises(RuntimeError, match="size mismatch"):
        write_model(float_vit(), timm_vit(embed_dim=32))
