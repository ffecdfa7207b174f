"""What the packaged models were trained on: regions that stay with their images, and shares of patches."""

import numpy as np
import pytest
import torch

from benchmarks.demo.rendered import PATCH, Rendered, augment, normalise, render_series, shares
from qvit.demo.canvas import SIZE
from qvit.demo.glyphs import GLYPHS
from qvit.demo.objects import CLASSES
from qvit.demo.scenes import render

COUNT = 2 * len(CLASSES)


@pytest.fixture(scope="module")
def series():
    return render_series(5, COUNT)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def test_a_series_is_what_the_renderer_draws(series):
    for index in (0, 13, COUNT - 1):
        scene = render(5, index)
        assert series.images[index].numpy().tobytes() == scene.image.tobytes()
        assert int(series.labels[index]) == scene.label
        region = series.regions[index].numpy()
        assert np.array_equal(region == 0, scene.mask == 0)
        for number, label in enumerate(scene.classes, start=1):
            assert (region[scene.mask == number] == label + 1).all()


def test_regions_are_varied_as_their_images_are(series):
    """Images that hold their own regions show whether both went the same way."""
    marked = series.regions[..., None].expand(-1, -1, -1, 3).contiguous()
    before = Rendered(marked, series.labels, series.regions)
    images, labels, regions = augment(before, torch.arange(COUNT), generator(0))
    grey = ((images * 0.5 + 0.5) * 255).round().long()
    assert labels.equal(series.labels)
    as_drawn = [bool((image == region).all()) for image, region in zip(grey, regions, strict=True)]
    inverted = [
        bool((image == 255 - region.long()).all())
        for image, region in zip(grey, regions, strict=True)
    ]
    assert all(a != b for a, b in zip(as_drawn, inverted, strict=True))
    assert any(as_drawn)
    assert any(inverted)


def test_glyphs_are_not_turned_and_the_series_stays_as_it_was(series):
    kept = [t.clone() for t in (series.images, series.regions)]
    _, _, regions = augment(series, torch.arange(COUNT), generator(1))
    assert series.images.equal(kept[0])
    assert series.regions.equal(kept[1])
    shifts = [(down, right) for down in range(-4, 5) for right in range(-4, 5)]
    shift = next(s for s in shifts if regions[-1].equal(kept[1][-1].roll(s, (0, 1))))
    unturned = [regions[index].equal(kept[1][index].roll(shift, (0, 1))) for index in range(COUNT)]
    is_glyph = [CLASSES[label] in GLYPHS for label in series.labels.tolist()]
    assert all(still for still, glyph in zip(unturned, is_glyph, strict=True) if glyph)
    assert not all(still for still, glyph in zip(unturned, is_glyph, strict=True) if not glyph)


def test_colours_are_permuted_or_inverted_and_nothing_else(series):
    images, _, _ = augment(series, torch.arange(COUNT), generator(2))
    for image, original in zip(images, normalise(series.images), strict=True):
        before, after = (
            torch.stack([channel.flatten().sort().values for channel in picture])
            for picture in (original, image)
        )
        inverted = before.neg().flip(1)
        assert all(
            any(torch.allclose(channel, other, atol=1e-6) for other in (*before, *inverted))
            for channel in after
        )


def test_shares_count_the_pixels_of_every_patch(series):
    found = shares(series.regions[:3])
    side = SIZE // PATCH
    assert found.shape == (3, side * side, len(CLASSES) + 1)
    for image, region in zip(found, series.regions[:3].numpy(), strict=True):
        for row, column in ((0, 0), (2, 5), (7, 1), (4, 4)):
            patch = region[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
            expected = np.bincount(patch.ravel(), minlength=len(CLASSES) + 1) / PATCH**2
            assert image[row * side + column].tolist() == expected.tolist()
