"""What the report says a teacher does is what the teacher does."""

import pytest
import torch

from qvit import zoo
from qvit.models.floating import Float
from qvit.models.timm_import import read_model
from qvit.report.observation import BATCH, observe
from qvit.report.page import SYNTHETIC
from qvit.report.pictures import to_pixels


@pytest.fixture(scope="module")
def teacher(tiny_model):
    source = zoo.resolve(str(tiny_model))
    model = zoo.load(source)
    return model, read_model(model, source.pretrained_cfg)


@torch.no_grad()
def test_answers_are_the_models_own(teacher):
    """Over several batches, the last of them smaller."""
    _, vit = teacher
    images = torch.randn(BATCH + 3, 3, 32, 32)
    seen = observe(vit, SYNTHETIC, images, wanted=[0] * len(images), shown=5, mapped=4)
    sure, best = vit(images, Float()).softmax(-1).max(-1)
    assert seen.predicted == best.tolist()
    assert seen.confidence == pytest.approx(sure.tolist(), abs=1e-5)
    assert seen.count == len(images) == len(seen.predicted)
    assert seen.pixels.shape == (5, 32, 32, 3)
    assert seen.attention.shape == (4, 2, 2, 16)
    assert seen.shown == [0, 7, 14, 21, 28]
    assert seen.mapped == [0, 8, 17, 26]
    config = vit.config
    assert (seen.pixels == to_pixels(images[seen.shown], config.mean, config.std)).all()
    assert (seen.starts == to_pixels(images[seen.mapped], config.mean, config.std)).all()
    alone = observe(vit, SYNTHETIC, images[26:27])
    torch.testing.assert_close(seen.attention[3:], alone.attention, rtol=1e-4, atol=1e-6)
    assert set(seen.ranges) == {name for name in vit.config.linears() if name != "patch_embed.proj"}


@torch.no_grad()
def test_maps_are_the_class_tokens_attention(teacher):
    """Against the textbook form on timm's own block, from its input on."""
    model, vit = teacher
    images = torch.randn(2, 3, 32, 32)
    inputs = []
    handle = model.blocks[1].norm1.register_forward_hook(lambda *args: inputs.append(args[2]))
    model(images)
    handle.remove()
    attention = model.blocks[1].attn
    q, k, _ = attention.qkv(inputs[0]).reshape(2, 17, 3, 2, 32).permute(2, 0, 3, 1, 4)
    expected = torch.stack(
        [
            torch.stack([((q[b, h] @ k[b, h].T) / 32**0.5).softmax(-1)[0, 1:] for h in range(2)])
            for b in range(2)
        ]
    )
    seen = observe(vit, SYNTHETIC, images, mapped=2)
    torch.testing.assert_close(seen.attention[:, 1], expected, rtol=1e-4, atol=1e-6)
