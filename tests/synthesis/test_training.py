"""Training a run's generator: stopped anywhere, it ends in the same bits; and whole runs of acq."""

import json

import pytest
import torch

from qvit import synthesis, zoo
from qvit.errors import InputError
from qvit.recipe import Synthesis
from qvit.synthesis import training
from qvit.synthesis.training import LOG, STATE, trained_generator
from tests.synthesis.settings import convolutional, demo, small

TINY = {"width": 16, "latent": 6, "batch": 2, "iterations": 6}


class StoppedError(Exception):
    pass


def stop_after(steps):
    def step_done(done, losses):
        if done == steps:
            raise StoppedError

    return step_done


def test_stopped_and_continued_it_ends_with_the_same_bits(tmp_path):
    settings = small("acq", **TINY)
    ends = {}
    for name, stops in (("whole", ()), ("stopped", (2, 5))):
        folder = tmp_path / name
        folder.mkdir()
        for steps in stops:
            with pytest.raises(StoppedError):
                trained_generator(convolutional(), settings, 3, folder, "a run", stop_after(steps))
        maker = trained_generator(convolutional(), settings, 3, folder, "a run")
        assert not maker.training
        ends[name] = (folder / STATE).read_bytes()
        lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
        assert [line["iteration"] for line in lines] == [*range(6)]
        assert {"loss", "statistics", "centres", "pairs", "consistency", "classes"} <= set(lines[0])
    assert ends["whole"] == ends["stopped"]


def test_a_finished_one_is_read_and_not_trained(tmp_path):
    settings = small("acq", **TINY)
    first = trained_generator(convolutional(), settings, 3, tmp_path, "a run")
    again = trained_generator(convolutional(), settings, 3, tmp_path, "a run", stop_after(1))
    ours, theirs = first.state_dict(), again.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_other_and_damaged_states_are_refused(tmp_path):
    settings = small("acq", **TINY)
    trained_generator(convolutional(), settings, 3, tmp_path, "a run")
    with pytest.raises(InputError, match="belongs to another run; remove"):
        trained_generator(convolutional(), settings, 3, tmp_path, "another")
    whole = (tmp_path / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is damaged"):
        trained_generator(convolutional(), settings, 3, tmp_path, "a run")


def test_a_loss_that_is_not_finite_means_another_seed(tmp_path, monkeypatch):
    plain, calls = training.generator_terms, []

    def poisoned(*args):
        calls.append(1)
        terms = plain(*args)
        return terms | {"classes": terms["classes"] * float("nan")} if len(calls) == 2 else terms

    monkeypatch.setattr(training, "generator_terms", poisoned)
    settings = small("acq", **TINY)
    trained_generator(convolutional(), settings, 3, tmp_path, "a run")
    assert len(calls) == 2 + 6
    from safetensors import safe_open

    with safe_open(tmp_path / STATE, "pt") as file:
        assert json.loads(file.metadata()["qvit"])["attempt"] == 1


@pytest.mark.parametrize("model", ["demo_vit", "demo_resnet"])
def test_whole_runs(model, tmp_path):
    settings = small("acq", images=5, **TINY)
    source = zoo.resolve(model)
    parts = []
    for index in (1, 0, 2):  # shares, in any order
        found = synthesis.synthesize(
            source, settings, tmp_path / "shares", seed=2, shard=(index, 3), progress=False
        )
        parts.append(found["complete"])
    assert parts == [False, False, True]
    found = synthesis.synthesize(source, settings, tmp_path / "whole", seed=2, progress=False)
    assert found["complete"]
    assert found["images_read"] == 0
    images = synthesis.open_images(tmp_path / "whole")
    assert len(images) == 5
    for pixels, labels in images:
        assert pixels.abs().max() <= 1
        assert labels.dtype == torch.int64
    for name in ("shards/000000.safetensors", "shards/000002.safetensors", STATE):
        one, other = ((tmp_path / folder / name).read_bytes() for folder in ("shares", "whole"))
        assert one == other


def test_the_estimate_counts_the_generator():
    whole = synthesis.estimate(demo(), Synthesis.preset("acq", images=64))
    more = synthesis.estimate(demo(), Synthesis.preset("acq", images=6400))
    wide = synthesis.estimate(demo(), Synthesis.preset("acq", images=64, width=512))
    assert more["estimated_seconds"] < 2 * whole["estimated_seconds"]  # it is trained once
    assert wide["estimated_memory_bytes"] > whole["estimated_memory_bytes"]
    assert wide["estimated_iteration_seconds"] > whole["estimated_iteration_seconds"]
