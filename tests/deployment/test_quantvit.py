import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from qvit.deployment import QuantViT
from qvit.errors import UsageError
from qvit.models.floating import Float
from qvit.models.unfolding import unfold
from tests.support import images_for


@pytest.fixture
def model(tiny_quantized) -> QuantViT:
    return QuantViT.from_pretrained(tiny_quantized)


def test_dequantized_model_is_timm_s(model):
    from timm.models import VisionTransformer

    found = model.dequantize()
    assert type(found) is VisionTransformer
    assert not found.training
    images = images_for(model.vit)
    with torch.inference_mode():
        expected = unfold(model.vit)(images, Float())
        torch.testing.assert_close(found(images), expected, rtol=1e-4, atol=1e-4)
    found(images).sum().backward()  # it can be trained on
    assert found.head.weight.grad is not None


@pytest.mark.parametrize("backend", ["cpu", "reference", "triton"])
def test_any_number_of_images(tiny_quantized, backend):
    model = QuantViT.from_pretrained(tiny_quantized, backend=backend)
    images = images_for(model.vit, 2)
    nothing = model(images[:0])
    assert nothing.shape == (0, 6)
    assert model.forward_features(images[:0]).shape == (0, 17, 64)
    if backend != "triton":  # seconds an image in Triton's interpreter
        torch.testing.assert_close(model(images[:1]), model(images)[:1], rtol=1e-5, atol=1e-5)


def test_state_goes_from_model_to_model(model):
    images = images_for(model.vit)
    expected = model(images)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.zero_()
    assert not torch.equal(other(images), expected)
    assert other.load_state_dict(model.state_dict()).missing_keys == []
    assert torch.equal(other(images), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_change_what_comes_out_and_nothing_inside(model, dtype):
    images = images_for(model.vit)
    logits, tokens = model(images), model.forward_features(images)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert model.to(dtype) is model
    assert model.dtype == dtype
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(model(images), logits.to(dtype))
    assert torch.equal(model.forward_features(images), tokens.to(dtype))
    assert model(images.to(dtype)).dtype == dtype
    assert torch.equal(model.to("cpu").float()(images), logits)


def test_half_precision_reaches_a_model_within_a_model(model):
    probe = torch.nn.Sequential(model, torch.nn.Linear(6, 2)).half()
    assert probe(images_for(model.vit).half()).dtype == torch.float16


def test_device_moves_everything(model):
    assert model.to("meta") is model
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"meta"}
    assert model.device.type == "meta"


def test_training_is_refused_with_the_ways_out(model):
    with pytest.raises(UsageError, match=r"no gradient.*head alone.*distils.*dequantize\(\)"):
        model.train()
    assert model.eval() is model
    assert not model.training


REFUSED_IMAGES = {
    "array": ([1.0], TypeError, r"must be a tensor, got list; model\.transform\(\)"),
    "bytes": (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), TypeError, "normalised floats"),
    "complex": (torch.zeros(1, 3, 32, 32, dtype=torch.complex64), TypeError, "normalised floats"),
    "one image": (torch.zeros(3, 32, 32), ValueError, r"images\[None\] makes a batch"),
    "grey": (torch.zeros(1, 1, 32, 32), ValueError, r"got \[1, 1, 32, 32\].*RGB"),
    "large": (torch.zeros(1, 3, 64, 48), ValueError, r"img_size=\(64, 48\)"),
    "elsewhere": (torch.zeros(1, 3, 32, 32, device="meta"), ValueError, r"images\.to\(model"),
}


@pytest.mark.parametrize("kind", REFUSED_IMAGES)
@pytest.mark.parametrize("method", ["forward", "forward_features"])
def test_images_are_refused_before_anything_is_computed(model, monkeypatch, kind, method):
    monkeypatch.setattr(model.vit, "begin", None)
    images, error, message = REFUSED_IMAGES[kind]
    with pytest.raises(error, match=message):
        getattr(model, method)(images)


@pytest.mark.parametrize("size", [48, (24, 40)])
def test_other_image_sizes_are_timm_s(tiny_quantized, size):
    model = QuantViT.from_pretrained(tiny_quantized, img_size=size)
    expected = QuantViT.from_pretrained(tiny_quantized).dequantize()
    expected.set_input_size(size if isinstance(size, tuple) else (size, size))
    torch.testing.assert_close(model.vit.pos_embed, expected.pos_embed.detach())
    images = images_for(model.vit)
    assert images.shape[2:] == ((48, 48) if size == 48 else size)
    assert model(images).shape == (3, 6)
    assert model.data_config.input_size == images.shape[1:]
    found = model.dequantize()
    torch.testing.assert_close(found(images), expected(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [0, -32, 32.5, (32,), (32, 1.5), True, (4, 32)])
def test_sizes_that_are_none_are_refused(model, size):
    before = model.config
    with pytest.raises(UsageError, match=r"img_size must be|do not hold a patch"):
        model.set_input_size(size)
    assert model.config == before
    assert model.vit.config.image_size == (32, 32)


def test_same_size_changes_nothing(model):
    before = model.vit.pos_embed
    model.set_input_size(32)
    assert model.vit.pos_embed is before


def test_features_are_in_the_basis_of_the_float_model(tiny_quantized, model):
    features = QuantViT.from_pretrained(tiny_quantized, num_classes=0)
    assert features.num_classes == features.config["num_classes"] == 0
    images = images_for(model.vit)
    found = features(images)
    assert found.shape == (3, features.num_features)
    assert torch.equal(found, model.forward_features(images)[:, 0])
    floating = features.dequantize()
    assert floating.num_classes == 0
    expected = floating(images)
    # four bits apart, and not a rotation of 64 channels
    assert torch.cosine_similarity(found, expected).min() > 0.7
    assert features.scheme == model.scheme
    features.load_state_dict({k: v for k, v in model.state_dict().items() if ".head." not in k})


def test_classifier_of_other_classes_is_refused(model):
    model.reset_classifier(6)
    with pytest.raises(UsageError, match=r"would have to be trained.*reset_classifier\(0\)"):
        model.reset_classifier(10)
    assert model.num_classes == 6


def test_threads_with_batches_of_their_own(tiny_quantized, model):
    """The second model's packed weights are unpacked by whichever thread comes first."""
    batches = [images_for(model.vit, count) for count in (1, 4, 0, 2, 3, 1)]
    expected = [model(images) for images in batches]
    fresh = QuantViT.from_pretrained(tiny_quantized)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fresh, batches))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_exported_features_take_any_batch(model):
    model.set_input_size((32, 48))
    model.reset_classifier(0)
    batches = [images_for(model.vit, count) for count in (2, 5)]
    any_number = {"images": {0: torch.export.Dim("batch", min=2, max=64)}}
    exported = torch.export.export(model, (batches[0],), dynamic_shapes=any_number).module()
    for images in batches:
        assert torch.equal(exported(images), model(images))


@pytest.mark.parametrize("copying", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])  # noqa: S301 - our own
def test_copies_are_what_they_were_made_of(model, copying):
    model.set_input_size(40)
    model.reset_classifier(0)
    images = images_for(model.half().vit)
    found = copying(model)
    assert found.config == model.config
    assert torch.equal(found(images), model(images))
    found.vit.norm.bias.data.fill_(1)
    assert not torch.equal(found(images), model(images))
