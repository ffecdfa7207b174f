"""Images made anew for the student as it is: the schedule of spans, and a chain that is stopped and goes on."""

import json
from itertools import pairwise

import pytest
import torch

from qvit.distillation import renewal
from qvit.distillation.renewal import distil_renewed, plan_spans
from qvit.distillation.schedule import learning_rate
from qvit.errors import UsageError
from qvit.models.static import with_static_quantizers
from qvit.models.vit_students import StaticStudent
from qvit.models.watching import FloatTeacher
from qvit.recipe import Activations, Attention, Distillation, Recipe, Static, Weights
from tests.synthesis.settings import demo, small, teacher


def student():
    recipe = Recipe(
        weights=Weights(bits=4, range="minmax"),
        activations=Activations(bits=4),
        attention=Attention(bits=4, softmax_bits=4),
        static=Static(activations="lsq", start="mse"),
    )
    return StaticStudent(with_static_quantizers(teacher(), recipe))


SETTINGS = Distillation.preset("maskaq", epochs=3, batch=2, augment=False)
IMAGES = small("maskaq", images=4, batch=4, iterations=2)


def chain(folder, learner, every=2):
    return distil_renewed(
        demo(), FloatTeacher(teacher()), learner, IMAGES, SETTINGS,
        every=every, seed=3, folder=folder, progress=False,
    )  # fmt: skip


def test_a_cosine_goes_on_over_the_spans():
    settings = Distillation.preset("maskaq", epochs=100)
    spans = plan_spans(settings, 30)
    assert [s.epochs for s in spans] == [30, 30, 30, 10]
    assert spans[0].lr == settings.lr
    assert spans[-1].lr_final == pytest.approx(settings.lr_final)
    for one, following in pairwise(spans):
        assert one.lr_final == pytest.approx(following.lr)
    for first, span in zip((0, 30, 60, 90), spans, strict=True):
        for epoch in range(span.epochs):
            near = learning_rate(epoch, span.epochs, span)
            far = learning_rate(first + epoch, 100, settings)
            assert near == pytest.approx(far, abs=0.07 * settings.lr)


def test_steps_and_inundation_are_those_of_the_spans_beginning():
    settings = Distillation.preset("ait", epochs=400)
    spans = plan_spans(settings, 100)
    assert [s.lr for s in spans] == pytest.approx([1e-4, 1e-5, 1e-6, 1e-7])
    assert [s.inundation for s in spans] == pytest.approx([1e-4, 1e-5, 1e-6, 1e-7])
    assert {s.schedule for s in spans} == {"constant"}
    assert [s.track for s in spans] == pytest.approx([0.04, 0, 0, 0])


def test_later_images_are_made_with_the_student_as_it_is(tmp_path):
    learner = student()
    found = chain(tmp_path, learner)
    assert found["epochs"] == 3
    assert found["images"] == 8
    assert len(found["spans"]) == 2
    runs = [
        json.loads((tmp_path / f"images-00{n}" / "manifest.json").read_text())["run"]
        for n in (0, 1)
    ]
    assert runs[0]["student_sha256"] is None
    assert runs[0]["settings"]["alignment"] == 0
    assert runs[1]["student_sha256"]
    assert runs[1]["settings"]["alignment"] == IMAGES.alignment
    log = (tmp_path / "images-001" / "log.jsonl").read_text()
    assert '"alignment"' in log


class StoppedError(Exception):
    pass


def test_a_stopped_chain_ends_in_the_same_bits(tmp_path, monkeypatch):
    whole, again = student(), student()
    chain(tmp_path / "whole", whole)
    plain, calls = renewal.distil, []

    def stopped(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise StoppedError
        return plain(*args, **options)

    monkeypatch.setattr(renewal, "distil", stopped)
    with pytest.raises(StoppedError):
        chain(tmp_path / "cut", student())
    monkeypatch.setattr(renewal, "distil", plain)
    chain(tmp_path / "cut", again)
    ours, theirs = whole.state_dict(), again.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_spans_have_a_length(tmp_path):
    with pytest.raises(UsageError, match="every 0 epochs"):
        chain(tmp_path, student(), every=0)
