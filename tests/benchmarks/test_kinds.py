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


def test_few_images_are_seen_differently_each_time(monkeypatch):
    grey = torch.linspace(-1, 1, 4).view(4, 1, 1, 1).expand(4, 3, 64, 64)
    monkeypatch.setitem(kinds.KINDS, "leaves", lambda seed, count: grey[:count])
    images = kinds.draw("leaves-few", 0, 16)
    assert images.shape == (16, 3, 64, 64)
    with pytest.raises(ValueError, match="18 images are not 4 equal parts"):
        kinds.draw("leaves-few", 0, 18)
    monkeypatch.undo()
    monkeypatch.setattr(kinds, "source", lambda: sources.source("demo_vit"))
    few, all_ = (kinds.draw(f"leaves-{kind}", 0, 16) for kind in ("few", "augmented"))
    for found in (few, all_):
        distances = torch.cdist(found.flatten(1), found.flatten(1))
        assert (distances + torch.eye(16)).min() > 0.01  # no two alike


def test_images_without_a_class_are_made_without_its_term(monkeypatch):
    asked = []
    monkeypatch.setattr(kinds, "_synthesized", lambda settings, seed: asked.append(settings))
    for kind in ("psaq", "psaq-unclassed"):
        kinds.draw(kind, 3, 16)
    assert [settings.classes for settings in asked] == [1, 0]
    assert asked[0].attention == asked[1].attention > 0


def test_mixtures_have_equal_parts(monkeypatch):
    monkeypatch.setitem(kinds.KINDS, "mimiq", lambda seed, count: torch.zeros(count, 3, 64, 64))
    mixed = kinds.draw("leaves-mimiq", 0, 6)
    assert torch.equal(mixed[:3], kinds.draw("leaves", 0, 3))
    assert (mixed[3:] == 0).all()
