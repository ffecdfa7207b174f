"""ACQ's terms against slow obvious versions."""

import pytest
import torch

from qvit.synthesis.centres import (
    attention_centres,
    attention_map,
    centre_distance,
    embed,
    mode_distance,
    pair_shortfall,
)
from qvit.synthesis.loop import look
from qvit.synthesis.objective import View
from qvit.synthesis.statistics import batch_statistics
from tests.synthesis.settings import convolutional, teacher


def maps_of(count, rows, columns, seed=0):
    drawn = torch.rand(count, rows, columns, generator=torch.Generator().manual_seed(seed)).double()
    return drawn / drawn.sum((1, 2), keepdim=True)


def test_centres_are_mean_places():
    maps = maps_of(3, 4, 7)
    for found, each in zip(attention_centres(maps), maps, strict=True):
        down = sum(each[r, c] * (r + 0.5) / 4 for r in range(4) for c in range(7))
        right = sum(each[r, c] * (c + 0.5) / 7 for r in range(4) for c in range(7))
        assert found.tolist() == pytest.approx([down.item(), right.item()], rel=1e-6)
    single = torch.zeros(1, 4, 4)
    single[0, 3, 0] = 1
    assert attention_centres(single).tolist() == [[0.875, 0.125]]


def test_distances_are_their_definitions():
    maps, others = maps_of(3, 4, 4), maps_of(3, 4, 4, seed=1)
    centres = torch.rand(3, 2).double()
    slow = 0.0
    for each, wanted in zip(attention_centres(maps), centres, strict=True):
        slow += ((each[0] - wanted[0]) ** 2 + (each[1] - wanted[1]) ** 2) / 3
    assert centre_distance(maps, centres).item() == pytest.approx(slow.item(), rel=1e-6)
    slow = sum((a - b) ** 2 for a, b in zip(maps.flatten(), others.flatten(), strict=True)) / 3
    assert mode_distance(maps, others).item() == pytest.approx(slow.item(), rel=1e-6)


def test_pairs_lack_what_the_margin_wants():
    torch.manual_seed(2)
    first, second = torch.rand(2, 4, 6)
    z = torch.randn(2, 4, 5)
    slow = 0.0
    for i in range(4):
        unit = sum(abs(first[i, k]) + abs(second[i, k]) for k in range(6)) / 12
        apart = sum(abs(first[i, k] - second[i, k]) for k in range(6)) / 6
        ratio = apart / unit / (sum(abs(z[0, i, k] - z[1, i, k]) for k in range(5)) / 5)
        slow += max(0.0, 0.7 - ratio.item()) / 4
    assert pair_shortfall(first, second, (z[0], z[1]), 0.7).item() == pytest.approx(slow, abs=1e-5)
    assert pair_shortfall(first, first, (z[0], z[1]), 0.7).item() == pytest.approx(0.7)
    far = torch.cat([first, -first], -1), torch.cat([-first, first], -1)
    assert pair_shortfall(*far, (z[0], z[1]), 0.7) == 0


def test_gradients_are_right():
    torch.manual_seed(0)
    maps, other = torch.rand(2, 3, 3, 4).double().requires_grad_().unbind(0)
    centres = torch.rand(3, 2).double()
    assert torch.autograd.gradcheck(lambda m: centre_distance(m, centres), (maps,))
    assert torch.autograd.gradcheck(mode_distance, (maps, other))
    # the unit is not differentiated, so it is held still
    first, second = torch.rand(2, 3, 6).double()
    z = torch.randn(3, 5).double(), torch.randn(3, 5).double()
    first.requires_grad_()
    (found,) = torch.autograd.grad(pair_shortfall(first, second, z, 5.0), first)
    unit = (first.abs() + second.abs()).mean(-1, keepdim=True) / 2
    apart = (z[0] - z[1]).abs().mean(-1, keepdim=True) + 1e-5
    expected = -(first - second).sign() / (3 * 6 * unit * apart)
    assert torch.allclose(found, expected, atol=1e-8)


@pytest.mark.parametrize("network", [teacher, convolutional], ids=["vit", "cnn"])
def test_maps_of_real_networks(network):
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    outcome = look(network(), View(images, None), None, "float32")
    maps = attention_map(outcome, network().config)
    assert maps.shape == ((2, 8, 8) if network is teacher else (2, 4, 4))
    assert torch.allclose(maps.sum((1, 2)), torch.ones(2))
    assert embed(outcome).shape == (2, 128)
    if network is teacher:
        slow = [r.attention_to_patches() for r in outcome.records[3:]]
        slow = sum(s.mean(1) for s in slow) / 3
        assert torch.allclose(maps.flatten(1), slow / slow.sum(1, keepdim=True), atol=1e-6)


def test_the_batchs_own_statistics_leave_no_trace():
    network = convolutional()
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    before = {name: value.clone() for name, value in network.state_dict().items()}
    plain = network(images)
    with batch_statistics(network):
        own = network(images)
    assert not torch.allclose(plain, own, atol=0.1)
    assert torch.equal(network(images), plain)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(m.training for m in network.modules())
