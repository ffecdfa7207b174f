"""The section about a student: from the log of a real run, beside the images that it was trained on."""

import json
from types import SimpleNamespace

import pytest

from qvit import pipeline
from qvit.distillation import distil
from qvit.distillation.progress import LOG
from qvit.report.gathering import read_training
from qvit.report.page import Panels
from qvit.report.sections.training import show_training
from tests.distillation.students import TinyStudent, TinyTeacher, quick, tiny_pool


@pytest.fixture
def out(tmp_path):
    """Where a model would be written, with images and training beside it."""
    out = tmp_path / "model-w4a4"
    pipeline.images_beside(out).mkdir()
    distil(
        TinyTeacher(), TinyStudent(), tiny_pool(), quick(inundation=0.01), seed=0,
        folder=pipeline.training_beside(out), progress=False,
    )  # fmt: skip
    return out


def section(lines):
    return show_training(SimpleNamespace(training=lines))  # pyright: ignore[reportArgumentType]


def test_a_training_is_found_beside_its_images_and_shown(out):
    lines = read_training(pipeline.images_beside(out))
    found = section(lines)
    assert found is not None
    assert "12 steps so far. It agreed with it on" in found.lead
    held_out, losses = found.blocks
    assert isinstance(held_out, Panels)
    assert isinstance(losses, Panels)
    assert held_out.figures[0].title.startswith("Agreement")
    assert {"Loss", "Term: KL divergence", "Factor of a step"} <= {f.title for f in losses.figures}
    steps = [line for line in lines if "step" in line]
    assert found.data["steps"]["kl"] == [[line["step"], line["kl"]] for line in steps]
    assert json.loads(json.dumps(found.data)) == found.data


def test_steps_without_a_loss_are_counted_and_not_drawn(out):
    lines = read_training(pipeline.images_beside(out))
    lines[2] = {"step": 1, "loss": None, "kl": None, "lr": 0.1, "skipped": 1.0}
    found = section(lines)
    assert found is not None
    assert "1 were skipped" in found.lead
    assert 1 not in [step for step, _ in found.data["steps"]["loss"]]


def test_steps_at_the_cap_are_told(out):
    lines = read_training(pipeline.images_beside(out))
    found = section(lines)
    assert found is not None
    assert "largest that is allowed" not in found.lead
    lines[-2]["capped_steps"] = 3.0
    found = section(lines)
    assert found is not None
    assert "In 3 the factor of a weight's step was the largest that is allowed" in found.lead
    assert "capped_steps" not in found.data["steps"]


def test_images_that_nobody_was_trained_on_have_no_such_section(tmp_path):
    assert section([]) is None
    assert read_training(tmp_path / "images") == []
    assert read_training(tmp_path / "model-images") == []


def test_a_line_that_a_killed_run_left_unfinished_is_left_out(out):
    images = pipeline.images_beside(out)
    lines = read_training(images)
    with (pipeline.training_beside(out) / LOG).open("a") as log:
        log.write('{"step": 99, "lo')
    assert read_training(images) == lines
