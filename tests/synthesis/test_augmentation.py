import pytest
import torch

from qvit.synthesis.augmentation import Placement, draw_placement, jitter_colours, shift_colours


def draws(count=400, **changes):
    generator = torch.Generator().manual_seed(0)
    settings = {"size": (224, 224), "shift": 8, "diagonal": False, "flip": 0.5} | changes
    return [draw_placement(**settings, generator=generator) for _ in range(count)]


def test_shifts_fill_their_range_and_mirrors_half():
    found = draws()
    for axis in ("rows", "columns"):
        assert {getattr(p, axis) for p in found} == set(range(-8, 9))
    assert 150 < sum(p.mirrored for p in found) < 250
    assert any(p.rows != p.columns for p in found)
    assert all(p.rows == p.columns for p in draws(diagonal=True))
    assert not any(p.mirrored for p in draws(flip=0.0))


def test_shifts_shrink_with_the_image():
    assert {p.rows for p in draws(size=(56, 112))} == set(range(-2, 3))
    assert {p.columns for p in draws(size=(56, 112))} == set(range(-4, 5))


def test_patches_move_as_the_pixels_do():
    """A marked patch is found where its pixels went, for moves by whole patches."""
    chosen = torch.zeros(1, 4, 4, dtype=torch.bool)
    chosen[0, 0, 1] = True
    image = chosen.repeat_interleave(8, 1).repeat_interleave(8, 2).unsqueeze(1).float()
    for placement in (Placement(8, -16, False), Placement(-8, 24, True), Placement(0, 0, True)):
        moved = placement.apply(image)
        expected = moved.view(1, 4, 8, 4, 8).mean((2, 4)) == 1
        assert torch.equal(placement.apply_to_patches(chosen, (8, 8)), expected)
    nearest = Placement(5, 3, False).apply_to_patches(chosen, (8, 8))
    assert nearest.nonzero().tolist() == [[0, 1, 1]]  # 5 of 8 pixels is one patch, 3 is none


@pytest.mark.parametrize("change", [shift_colours, jitter_colours])
def test_colours_change_per_image_and_channel_alone(change):
    images = torch.randn(3, 3, 6, 6, requires_grad=True)
    seen = change(images, 0.5, torch.Generator().manual_seed(1))
    assert torch.equal(seen, change(images, 0.5, torch.Generator().manual_seed(1)))
    scales, offsets = set(), set()
    for b in range(3):
        for c in range(3):
            x, y = images[b, c].flatten(), seen[b, c].flatten()
            scale = (y[1] - y[0]) / (x[1] - x[0])
            offset = y[0] - scale * x[0]
            assert torch.allclose(y, scale * x + offset, atol=1e-4)
            scales.add(round(scale.item(), 3))
            offsets.add(round(offset.item(), 3))
    assert len(offsets) == 9
    assert len(scales) == (1 if change is shift_colours else 9)
    assert torch.autograd.grad(seen.sum(), images)[0].min() > 0


def test_jitter_stays_within_its_range():
    images = torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)]).repeat(200, 1, 1, 1)
    seen = jitter_colours(images.flatten(0, 1).unsqueeze(1), 1.0, torch.Generator().manual_seed(0))
    zeros = seen.view(200, 2, 3, 4)[:, 0]
    assert zeros.abs().max() <= torch.e  # |m| / s with |m| <= 1 and s >= 1/e
    assert zeros.abs().max() > 1.5
