"""Dead leaves: what pixels can be, from the batch's generator alone, with the statistics they are there for."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qvit.synthesis.leaves import draw_leaves
from qvit.synthesis.losses import total_variation
from qvit.synthesis.measures import measure
from qvit.synthesis.noise import draw_noise, pixel_bounds
from tests.synthesis.settings import batch_of, small, teacher


def batch(count=3, seed=0, **config):
    shape = {"image_size": (32, 32), "in_chans": 3, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    generator = torch.Generator().manual_seed(seed)
    return SimpleNamespace(
        count=count, config=SimpleNamespace(**(shape | config)), generator=generator
    )


@given(
    height=st.integers(8, 80), width=st.integers(8, 80), channels=st.sampled_from([1, 3, 4]),
    seed=st.integers(0, 2**32),
)  # fmt: skip
def test_every_value_is_one_that_a_pixel_can_have(height, width, channels, seed):
    ends = {"mean": (0.4,) * channels, "std": (0.3,) * channels}
    given = batch(2, seed, image_size=(height, width), in_chans=channels, **ends)
    found = draw_leaves(given)
    assert found.shape == (2, channels, height, width)
    assert found.dtype == torch.float32
    black, white = pixel_bounds(given.config, found.device)
    assert bool((found >= black - 1e-6).all() and (found <= white + 1e-6).all())


def test_they_are_the_generators_alone():
    assert torch.equal(draw_leaves(batch(seed=3)), draw_leaves(batch(seed=3)))
    assert not torch.equal(draw_leaves(batch(seed=3)), draw_leaves(batch(seed=4)))
    few, many = batch(2, seed=3), batch(4, seed=3)
    first, second = draw_leaves(many)[:2], draw_leaves(few)
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_channels_follow_the_normalisation():
    """The same picture, whatever the mean and deviation it is normalised with."""
    plain = draw_leaves(batch(mean=(0.0,) * 3, std=(1.0,) * 3))
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    found = draw_leaves(batch(mean=mean, std=std))
    back = found * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    assert torch.allclose(back, plain, atol=1e-6)


@pytest.fixture(scope="module")
def pictures():
    return draw_leaves(batch(64, image_size=(64, 64), mean=(0.0,) * 3, std=(1.0,) * 3))


def test_spectra_fall_as_those_of_photographs(pictures):
    """Amplitudes by about 1 / frequency; those of noise do not fall."""
    grey = pictures.mean(1)
    amplitude = torch.fft.rfft2(grey - grey.mean((1, 2), keepdim=True)).abs().mean(0)[0]
    slope = math.log(float(amplitude[24] / amplitude[3])) / math.log(24 / 3)
    assert -1.6 < slope < -0.6


def test_colours_vary_less_than_brightness(pictures):
    red, green, blue = pictures.unbind(1)
    assert float((red - blue).std()) < float((red + green + blue).std())
    assert 0.1 < float(pictures.std()) < 0.4
    assert 0.35 < float(pictures.mean()) < 0.65


def test_a_network_sees_more_in_them_than_in_noise():
    """The demo ViT: smoother, and surer of what it sees."""
    settings = small("leaves")
    leaves, noise = (draw(batch_of(settings, 16)) for draw in (draw_leaves, draw_noise))
    assert float(total_variation(leaves).mean()) < 0.5 * float(total_variation(noise).mean())
    found, other = measure(teacher(), leaves), measure(teacher(), noise)
    assert found.keys() == other.keys()
    assert all(math.isfinite(value) for value in found["patch_entropies"])
