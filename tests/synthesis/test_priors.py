import math

import pytest
import torch

from qvit.synthesis.priors import (
    draw_labels,
    draw_prior_maps,
    draw_smoothness,
    draw_soft_labels,
)
from tests.support import float_vit
from tests.synthesis.settings import batch_of, small, teacher


def test_labels_are_uniform_over_the_classes():
    labels = draw_labels(batch_of(small("mimiq"), 4800))
    counts = torch.bincount(labels, minlength=24)
    assert len(counts) == 24
    assert counts.min() > 140
    assert counts.max() < 260
    vit = float_vit("no head")
    assert draw_labels(batch_of(small("noise"), 3, network=vit)).tolist() == [-1, -1, -1]


def test_smoothness_is_the_published_one_for_its_size_and_the_same_a_pixel_elsewhere():
    settings = small("psaq")
    pixels = 3 * 64 * 64
    factor = math.sqrt(8 * pixels / (32 * 3 * 224 * 224))
    found = [draw_smoothness(batch_of(settings, 8, seed)) / factor for seed in range(50)]
    assert 2500 <= min(found) < 2560
    assert 2940 < max(found) <= 3000
    assert draw_smoothness(batch_of(small("mimiq"))) == 0


def test_soft_labels_want_what_is_wanted():
    settings = small("sardfq")
    wanted = torch.zeros(40, 24, dtype=torch.bool)
    wanted[:, 3] = wanted[::2, 7] = True
    soft = draw_soft_labels(wanted, batch_of(settings))
    assert torch.allclose(soft.sum(-1), torch.ones(40))
    logits = soft.log()
    odds = logits[:, 3] - logits[:, 0]
    assert odds.min() > 4
    assert odds.max() < 10
    assert odds.std() > 0.5
    assert (soft[::2, 7] > soft[::2, 1]).all()


@pytest.mark.parametrize("shape", ["plain", "oblong image"])
def test_prior_maps_are_mixtures_with_structure(shape):
    vit = float_vit(shape)
    config = vit.config
    maps = draw_prior_maps(6, batch_of(small("sardfq", mixtures=3), network=vit))
    assert maps.shape == (config.depth, 6, config.num_heads, config.num_patches)
    assert torch.allclose(maps.sum(-1), torch.ones(maps.shape[:-1]), atol=1e-5)
    assert (maps >= 0).all()
    assert maps.amax(-1).mean() > 2 / config.num_patches  # peaks, not a flat map
    assert len({round(m.item(), 6) for m in maps.amax(-1).flatten()}) > 20  # each its own
    assert teacher().config.num_patches == 64
