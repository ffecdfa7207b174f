"""The entropy without large tensors against its definition with them."""

import math

import pytest
import torch
import torch.nn.functional as F

from qvit.synthesis import entropy
from qvit.synthesis.entropy import patch_similarity_entropy


def slow_entropy(features, bandwidth=0.01, points=10):
    pairs = F.cosine_similarity(features.unsqueeze(1), features.unsqueeze(2), dim=-1).flatten(1)
    low, high = pairs.min().item(), pairs.max().item()
    places = torch.linspace(low, high, points, dtype=features.dtype)
    total = 0
    for image in pairs:
        density = [
            torch.exp(-((x - image) ** 2) / (2 * bandwidth**2)).mean()
            / math.sqrt(2 * math.pi * bandwidth**2)
            for x in places
        ]
        lifted = torch.stack(density) + 1e-4
        values = -lifted * lifted.log()
        total = total + ((values[1:] + values[:-1]) / 2 * (places[1:] - places[:-1])).sum()
    return total / len(pairs)


def features(spread, images=3, patches=20, width=8, dtype=torch.double):
    """The larger the spread, the more alike the patches, and the closer the places of the density."""
    return (
        (torch.randn(images, patches, width) + spread * torch.randn(width))
        .to(dtype)
        .requires_grad_()
    )


@pytest.mark.parametrize(
    ("spread", "bandwidth", "points"),
    [
        (0.0, 0.01, 10),
        (1.0, 0.01, 10),
        (5.0, 0.01, 10),
        (0.0, 0.3, 10),
        (1.0, 0.3, 10),
        (0.0, 0.002, 37),
        (2.0, 0.002, 37),
        (1.0, 0.1, 2),
    ],
)
def test_it_is_its_definition(spread, bandwidth, points):
    x = features(spread)
    fast = patch_similarity_entropy(x, bandwidth=bandwidth, points=points)
    slow = slow_entropy(x, bandwidth, points)
    assert fast.item() == pytest.approx(slow.item(), abs=1e-8)
    (ours,), (theirs,) = (torch.autograd.grad(loss, x) for loss in (fast, slow))
    assert theirs.abs().max() > 1e-4
    assert (ours - theirs).abs().max() < 1e-6 * theirs.abs().max()


@pytest.mark.parametrize("spread", [0.0, 2.0, 20.0])
def test_float32_stays_within_1e_4(spread):
    x = features(spread, images=4, patches=196, width=64, dtype=torch.float32)
    fast, slow = patch_similarity_entropy(x), slow_entropy(x.double())
    assert fast.item() == pytest.approx(slow.item(), abs=1e-4)


def test_a_few_images_at_a_time_are_as_all_at_once(monkeypatch):
    x = features(1.0, images=5)
    whole = patch_similarity_entropy(x)
    monkeypatch.setattr(entropy, "_TOGETHER", 2 * 20 * 20)
    parts = patch_similarity_entropy(x)
    assert parts.item() == pytest.approx(whole.item(), abs=1e-12)
    (a,), (b,) = (torch.autograd.grad(loss, x) for loss in (whole, parts))
    assert torch.allclose(a, b, atol=1e-12)


def test_the_batch_couples_its_images():
    x = features(0.0).detach()
    wider = torch.cat([x[:2], 9 + x[2:]])  # the third image moves the places of all
    alone = [patch_similarity_entropy(batch[:2]) for batch in (x, wider)]
    assert alone[0] == alone[1]
    assert patch_similarity_entropy(x) != patch_similarity_entropy(wider)


def test_patches_all_alike_have_no_entropy():
    x = torch.ones(2, 9, 4, requires_grad=True)
    found = patch_similarity_entropy(x)
    found.backward()
    assert found.item() == 0
    assert x.grad.abs().max() == 0


def test_the_backward_pass_keeps_only_features():
    x = features(1.0, images=2, patches=64, width=8, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        patch_similarity_entropy(x)
    assert max(kept) <= x.numel()  # a map of similarities would have 2 * 64 * 64


@pytest.mark.parametrize("image", [0, 2])
def test_nan_is_passed_on_whichever_image_it_is_in(image, monkeypatch):
    monkeypatch.setattr(entropy, "_TOGETHER", 1)
    x = features(1.0).detach()
    x[image, 3, 4] = math.nan
    x.requires_grad_()
    found = patch_similarity_entropy(x)
    assert found.isnan()
    found.backward()
