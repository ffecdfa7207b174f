"""Kinds of images: chosen by confidence, or made of fewer."""

import pytest
import torch

from benchmarks import kinds, sources
from qvit.models.floating import Float


@pytest.fixture(autouse=True)
def _demo_vit(monkeypatch):
    """Images are for the demo ViT, which needs no download."""
    monkeypatch.setattr(kinds, "source", lambda: sources.source("demo_vit"))
    monkeypatch.setattr(kinds, "float_vit", lambda: sources.float_vit("demo_vit"))


def _confidence(images):
    with torch.no_grad():
        return sources.float_vit("demo_vit")(images, Float()).softmax(-1).amax(-1)


def test_leaves_chosen_by_confidence_are_the_ends_of_ten_times_as_many():
    every = _confidence(kinds.draw("leaves", 0, 40)).sort().values
    unsure, sure = (
        _confidence(kinds.draw(kind, 0, 4)).sort().values
        for kind in ("leaves-unsure", "leaves-sure")
    )
    torch.testing.assert_close(unsure, every[:4])
    torch.testing.assert_close(sure, every[-4:])


def test_few_images_are_seen_differently_each_time():
    images = kinds.draw("leaves-few", 0, 16)
    assert images.shape == kinds.draw("leaves-augmented", 0, 16).shape
    distances = torch.cdist(images.flatten(1), images.flatten(1))
    assert (distances + torch.eye(16)).min() > 0.01  # no two alike


def test_mixtures_have_equal_parts(monkeypatch):
    monkeypatch.setitem(kinds.KINDS, "mimiq", lambda seed, count: torch.zeros(count, 3, 64, 64))
    mixed = kinds.draw("leaves-mimiq", 0, 6)
    assert torch.equal(mixed[:3], kinds.draw("leaves", 0, 3))
    assert (mixed[3:] == 0).all()
