"""Pixels come back as they were, maps get brighter with their values, grids keep the order."""

import numpy as np
import torch

from qvit.report.pictures import colour_map, decode, encode, shrink, tile, to_pixels


def test_normalised_images_become_their_pixels_again():
    pixels = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    scale, shift = (torch.tensor(v).view(-1, 1, 1) for v in (std, mean))
    images = ((pixels / 255 - shift) / scale).half()
    found = to_pixels(images, mean, std)
    assert found.shape == (2, 5, 7, 3)
    # half precision holds 8-bit pixels to within half a step
    assert np.array_equal(found, pixels.permute(0, 2, 3, 1).numpy())


def test_values_outside_are_clipped():
    found = to_pixels(
        torch.tensor([-9.0, 9.0]).view(1, 1, 1, 2).repeat(1, 3, 1, 1), [0.5] * 3, [0.5] * 3
    )
    assert found[0, 0, :, 0].tolist() == [0, 255]


def test_map_gets_brighter_with_its_values():
    colours = colour_map(np.linspace(3, 9, 100).reshape(10, 10))
    brightness = colours.reshape(-1, 3).astype(int).sum(1)
    assert (np.diff(brightness) >= 0).all()
    assert brightness[-1] - brightness[0] > 600
    assert len(np.unique(colour_map(np.full((4, 4), 2.0)).reshape(-1, 3), axis=0)) == 1


def test_png_is_lossless():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    assert np.array_equal(decode(encode(pixels)), pixels)


def test_grid_keeps_the_order():
    pictures = [np.full((4, 6, 3), value, dtype=np.uint8) for value in (10, 20, 30, 40, 50)]
    grid = tile(pictures)
    assert grid.shape == (2 * 4 + 2, 3 * 6 + 2 * 2, 3)
    assert [grid[r, c, 0] for r in (0, 6) for c in (0, 8, 16)] == [10, 20, 30, 40, 50, 255]
    assert tile(pictures, columns=1).shape == (5 * 4 + 4 * 2, 6, 3)


def test_shrinking_averages_and_never_enlarges():
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[::2] = 200
    assert (shrink(pixels, 4) == 100).all()
    assert shrink(pixels, 4).shape == (4, 4, 3)
    assert shrink(pixels, 100) is pixels
