"""Every term against its definition, one number at a time."""

import math

import pytest
import torch
import torch.nn.functional as F

from qvit.synthesis import losses
from qvit.synthesis.losses import (
    class_distance,
    inter_head_distance,
    inter_head_distance_of,
    prior_map_distance,
    total_variation,
)
from qvit.synthesis.recording import BlockRecord


def slow_ssim(a, b):
    """Of two rows of raw scores, scaled to 0..1."""
    x, y = ((row - row.min()) / (row.max() - row.min() + 1e-8) for row in (a, b))
    c1, c2 = 0.01**2, 0.03**2
    mx, my = x.mean(), y.mean()
    vx, vy = (x * x).mean() - mx * mx, (y * y).mean() - my * my
    covariance = (x * y).mean() - mx * my
    return ((2 * mx * my + c1) * (2 * covariance + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))


def slow_distance(scores):
    images, heads, queries, _ = scores.shape
    found = [
        1 - slow_ssim(scores[b, i, n], scores[b, j, n]) ** 2
        for b in range(images)
        for n in range(queries)
        for i in range(heads)
        for j in range(heads)
    ]
    return torch.stack(found).mean()


@pytest.mark.parametrize(("heads", "queries", "keys"), [(3, 4, 9), (2, 5, 16), (1, 3, 7)])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_inter_head_distance_is_its_definition(heads, queries, keys, offset):
    scores = (
        torch.randn(2, heads, queries, keys, dtype=torch.double) * 4 + offset
    ).requires_grad_()
    fast, slow = inter_head_distance(scores), slow_distance(scores)
    assert fast.item() == pytest.approx(slow.item(), abs=1e-12)
    (ours,), (theirs,) = (torch.autograd.grad(loss, scores) for loss in (fast, slow))
    assert torch.allclose(ours, theirs, atol=1e-12)
    assert heads == 1 or ours.abs().max() > 1e-4
    single = inter_head_distance(scores.float())
    assert single.item() == pytest.approx(slow.item(), abs=1e-5)


def test_heads_that_attend_alike_are_at_no_distance():
    one = torch.randn(2, 1, 6, 16)
    alike = torch.cat([one, 3 * one + 2, one], 1)  # rows are scaled to 0..1 first
    assert inter_head_distance(alike).item() == pytest.approx(0, abs=1e-5)
    assert inter_head_distance(torch.randn(2, 3, 6, 16)).item() > 0.4


def test_class_distance_is_cross_entropy():
    logits, labels = torch.randn(5, 7), torch.tensor([0, 6, 3, 3, 1])
    slow = (
        sum(-math.log(logits[b].exp()[y] / logits[b].exp().sum()) for b, y in enumerate(labels)) / 5
    )
    assert class_distance(logits, labels).item() == pytest.approx(float(slow), rel=1e-5)
    soft = torch.rand(5, 7).softmax(-1)
    slow = -(soft * logits.log_softmax(-1)).sum(-1).mean()
    assert class_distance(logits, soft).item() == pytest.approx(slow.item(), rel=1e-5)


def test_images_below_the_floor_are_left_alone():
    logits = torch.tensor([[9.0, 0.0], [0.0, 1.0]], requires_grad=True)
    labels = torch.tensor([0, 0])
    (gradient,) = torch.autograd.grad(class_distance(logits, labels, 0.5), logits)
    assert gradient[0].abs().max() == 0
    assert gradient[1].abs().max() > 0.1
    expected = (0.5 + F.cross_entropy(logits[1:], labels[1:]).item()) / 2
    assert class_distance(logits, labels, 0.5).item() == pytest.approx(expected)


def test_prior_maps_are_compared_as_multiples_of_the_uniform_map():
    attention, maps = torch.rand(2, 3, 5), torch.rand(2, 3, 5).softmax(-1)
    total = 0.0
    for b in range(2):
        for h in range(3):
            row = attention[b, h] / attention[b, h].sum()
            total += sum(float(5 * row[p] - 5 * maps[b, h, p]) ** 2 for p in range(5)) / 5
    assert prior_map_distance(attention, maps).item() == pytest.approx(total / 6, rel=1e-5)
    assert prior_map_distance(7 * maps, maps).item() == pytest.approx(0, abs=1e-12)


def test_total_variation_is_four_norms_of_the_whole_batch():
    images = torch.randn(2, 3, 4, 5)
    squares = [0.0, 0.0, 0.0, 0.0]
    for image in images:
        for channel in image:
            for y in range(4):
                for x in range(5):
                    for n, (dy, dx) in enumerate([(0, 1), (1, 0), (1, 1), (1, -1)]):
                        if y + dy < 4 and 0 <= x + dx < 5:
                            squares[n] += float(channel[y, x] - channel[y + dy, x + dx]) ** 2
    norms = [math.sqrt(s) for s in squares]
    assert total_variation(images).item() == pytest.approx(sum(norms), rel=1e-5)
    weighted = norms[0] + norms[1] + (norms[2] + norms[3]) / math.sqrt(2)
    assert total_variation(images, 1 / math.sqrt(2)).item() == pytest.approx(weighted, rel=1e-5)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_an_image_at_a_time_is_the_same_distance(prefix, monkeypatch):
    monkeypatch.setattr(losses, "_TOGETHER", 2 * 3 * 12 * 12)  # two images, two, and one
    q, k = (torch.randn(5, 3, 12 + prefix, 4, dtype=torch.double).requires_grad_() for _ in "qk")
    record = BlockRecord(q, k, q, prefix, True, 0.5)
    plain = inter_head_distance(
        q[:, :, prefix:].float() @ k[:, :, prefix:].float().transpose(-1, -2)
    )
    fast = inter_head_distance_of(record)
    assert fast.item() == pytest.approx(plain.item(), abs=1e-6)
    for ours, theirs in zip(
        torch.autograd.grad(3 * fast, (q, k)), torch.autograd.grad(3 * plain, (q, k)), strict=True
    ):
        assert theirs[:, :, prefix:].abs().max() > 1e-4
        assert torch.allclose(ours, theirs, atol=1e-7)
    with torch.no_grad():
        assert inter_head_distance_of(record) == fast
