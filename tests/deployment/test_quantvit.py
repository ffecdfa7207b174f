import pytest
import torch

from qvit.deployment import QuantViT
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
