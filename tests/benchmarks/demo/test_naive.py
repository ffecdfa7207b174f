"""The naive low-bit model against which methods are told apart: nothing is left out, nothing is done well."""

import pytest
import timm
import torch
from torch import nn

from benchmarks.demo.naive import fold_norms, quantize_naively
from qvit import zoo
from qvit.demo.packaged import MODELS


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def levels(x):
    return len(x.detach().unique())


def test_folded_norms_compute_the_same(images):
    model = zoo.load(zoo.resolve("demo_resnet"))
    with torch.inference_mode():
        expected = model(images)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    fold_norms(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    with torch.inference_mode():
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("bits", [3, 4])
def test_every_weight_and_input_has_few_levels(name, bits, images):
    model = quantize_naively(zoo.load(zoo.resolve(name)), images, bits=bits)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    products = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    found = []
    for module in products:
        module.register_forward_hook(lambda m, arguments, _: found.append(levels(arguments[0])))
    with torch.inference_mode():
        model(images)
    assert len(found) == len(products)
    assert 2 < max(found) <= 2**bits
    assert 2 < max(levels(module.weight) for module in products) <= 2**bits


def test_both_products_of_attention_take_few_levels(images):
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, embed_dim=32, depth=2, num_heads=2, num_classes=5
    ).eval()
    quantized = quantize_naively(model, images, bits=4)
    found = []
    for block in quantized.get_submodule("blocks").children():
        block.get_submodule("attn.qkv").register_forward_hook(
            lambda _, arguments, output: found.extend(levels(x) for x in output.chunk(3, -1))
        )
        block.get_submodule("attn.attn_drop").register_forward_hook(
            lambda _, arguments, output: found.append(levels(output))
        )
    with torch.inference_mode():
        quantized(images)
    assert len(found) == 2 * 4  # Q, K, V and the softmax of each block
    assert 2 < max(found) <= 16
