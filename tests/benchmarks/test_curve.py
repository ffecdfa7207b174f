"""A publication's recipe over its budget: a point, at a budget that shows nothing but that it works."""

import pytest

from benchmarks import curve
from benchmarks.curve import Point
from benchmarks.sources import DEMO
from qvit.recipe import publications


@pytest.mark.parametrize(
    ("point", "images", "iterations", "epochs"),
    [
        (Point(1.0), 10_000, 2000, 200),
        (Point(0.0256), 256, 51, 5),
        (Point(0.0256, 4), 256, 51, 20),
        (Point(0.0032), 32, 50, 4),
    ],
)
def test_images_iterations_and_epochs_of_a_point(point, images, iterations, epochs):
    recipe = point.recipe
    assert (recipe.synthesis.images, recipe.synthesis.iterations) == (images, iterations)
    assert recipe.distillation.epochs == epochs
    assert recipe.static is not None
    assert recipe.distillation.holdout == 0.1  # as of every cell that there is


def test_a_point_and_one_that_goes_on_with_its_images(tmp_path, monkeypatch):
    monkeypatch.setattr(publications, "_LEAST", dict.fromkeys(publications._LEAST, 1))
    monkeypatch.setattr(curve, "SCRATCH", tmp_path)
    monkeypatch.setattr(curve, "_EVALUATED", 8)
    found = []
    for longer in (1, 2):
        made = set(tmp_path.rglob("*.safetensors"))
        found.append(curve.measure(DEMO, Point(0.0004, longer)))
        assert not made or made == set(tmp_path.rglob("*.safetensors"))
    assert [cell["trained"]["steps"] for cell in found] == [1, 2]
    assert found[0]["calibrated"] == found[1]["calibrated"]
    assert found[1]["result"]["kl"] != found[1]["calibrated"]["kl"]
    head, _, *rows = curve.table(found).splitlines()
    assert all(row.count("|") == head.count("|") for row in rows)
    assert [row.split(" | ")[:6] for row in rows] == [
        ["| demo_vit", "0.04%", "4", "1", "1", "1"],
        ["| demo_vit", "0.04%", "4", "1", "2", "2"],
    ]
