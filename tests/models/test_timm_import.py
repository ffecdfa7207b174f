import pytest
import timm
import torch
from safetensors.torch import load_file

from qvit import zoo
from qvit.errors import UsageError
from qvit.models.floating import Float
from qvit.models.timm_import import obstacles, read_config, read_model
from tests.support import SHAPES, STATISTICS, images_for, timm_vit

REFUSED = {
    "swin_tiny_patch4_window7_224": "SwinTransformer",
    "vit_relpos_small_patch16_224": "VisionTransformerRelPos",
    "vit_giant_patch14_dinov2": "perceptron",
    "vit_base_patch16_siglip_224": "pooling",
    "vit_base_patch16_clip_quickgelu_224": "QuickGELU",
    "resnet18": "ResNet",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_float_logits_equal_timms(shape):
    model = timm_vit(shape)
    vit = read_model(model, STATISTICS)
    images = images_for(vit)
    with torch.inference_mode():
        expected = model(images)
        torch.testing.assert_close(vit(images, Float()), expected, rtol=1e-4, atol=1e-4)
        assert expected.std() > 0.01


def test_float_logits_equal_timms_on_real_weights(shared):
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    model = timm.create_model(name, pretrained=False).eval()
    model.load_state_dict(load_file(shared / "models" / f"{name}.safetensors"))
    vit = read_model(model, timm.get_pretrained_cfg(name).to_dict())
    images = images_for(vit, count=2)
    with torch.inference_mode():
        assert (vit(images, Float()) - model(images)).abs().max() < 1e-4


def test_prefix_tokens_are_counted_not_assumed():
    counts = {s: read_config(timm_vit(s), STATISTICS).num_prefix_tokens for s in SHAPES}
    assert counts["plain"] == 1
    assert counts["average pooling, no class token"] == 0
    assert counts["registers"] == 5
    assert counts["distilled"] == 2


@pytest.mark.parametrize("name", REFUSED)
def test_other_architectures_are_refused_with_the_reason(name):
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    with pytest.raises(UsageError, match=REFUSED[name]) as refusal:
        read_config(model, STATISTICS)
    assert "What works" in str(refusal.value)


def test_dinov2_with_registers_is_accepted():
    with torch.device("meta"):
        model = timm.create_model("vit_small_patch14_reg4_dinov2.lvd142m", pretrained=False)
    config = read_config(model, STATISTICS)
    assert (config.reg_tokens, config.num_prefix_tokens, config.no_embed_class) == (4, 5, True)


def test_patch_embedding_with_a_norm_is_refused():
    model = timm_vit(embed_norm_layer="layernorm")
    with pytest.raises(UsageError, match="patch embedding"):
        read_config(model, STATISTICS)


def test_reading_leaves_the_timm_model_as_it_was():
    model = timm_vit("LayerScale")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    read_model(model, STATISTICS)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_block_with_foreign_norm_is_refused():
    model = timm_vit(norm_layer="rmsnorm")
    with pytest.raises(UsageError, match="not an affine LayerNorm"):
        read_config(model, STATISTICS)


@pytest.mark.parametrize("row", zoo.catalogue(), ids=lambda row: row["alias"])
def test_catalogue_says_truly_what_can_be_quantized(row):
    with torch.device("meta"):
        model = zoo.build(zoo.resolve(row["alias"]))
    assert row["quantizable"] == (next(obstacles(model), None) is None)


@pytest.mark.parametrize(
    ("shape", "changes", "reason"),
    [
        ("distilled", {"reg_tokens": 2}, "register tokens beside"),
        ("distilled", {"no_embed_class": True}, "no position embedding"),
        ("plain", {"depth": 0}, "no blocks"),
        (
            "plain",
            {"dynamic_img_size": True, "dynamic_img_pad": True, "img_size": 35},
            "pads images",
        ),
        ("plain", {"in_chans": 1}, "1 channels"),
    ],
)
def test_variants_that_would_compute_something_else_are_refused(shape, changes, reason):
    with pytest.raises(UsageError, match=reason):
        read_config(timm_vit(shape, **changes), STATISTICS)
