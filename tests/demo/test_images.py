"""`--data demo`: rendered pictures where a folder of images is expected."""

import numpy as np
import pytest
import torch

from qvit.data import DataConfig, batches, fingerprint, open_images
from qvit.demo import dataset as rendered
from qvit.demo.dataset import TEST_SEED, TRAINING_SEED
from qvit.demo.objects import CLASSES
from qvit.demo.scenes import VERSION, render
from qvit.errors import InputError, UsageError

CONFIG = DataConfig(input_size=(3, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0)


def test_images_arrive_as_they_were_drawn():
    dataset = open_images("demo:30", CONFIG, num_classes=len(CLASSES))
    for position in (0, 7, 29):
        index = int(dataset.path(position).partition("/")[2])
        scene = render(TEST_SEED, index)
        image, label, _ = dataset[position]
        assert label == scene.label
        assert dataset.path(position).startswith(f"{CLASSES[label]}/")
        expected = torch.from_numpy((scene.image / 255 - 0.5) / 0.5).permute(2, 0, 1)
        torch.testing.assert_close(image, expected.float())


def test_count_from_the_name_the_limit_or_the_default():
    assert len(open_images("demo", CONFIG)) == 1000
    assert len(open_images("demo:77", CONFIG)) == 77
    assert len(open_images("demo", CONFIG, limit=1500)) == 1500
    assert len(open_images("demo:1500", CONFIG, limit=60)) == 60


@pytest.mark.parametrize("data", ["demo:480", "demo"])
def test_a_limit_leaves_the_classes_balanced(data):
    labels = open_images(data, CONFIG, limit=96).labels
    assert np.bincount(labels).tolist() == [4] * len(CLASSES)


def test_fingerprint_tells_sets_apart():
    first = fingerprint(open_images("demo:48", CONFIG))
    assert first == fingerprint(open_images("demo", CONFIG, limit=48))
    assert first != fingerprint(open_images("demo:49", CONFIG))


def test_fingerprint_tells_versions_of_the_renderer_apart(monkeypatch):
    assert str(VERSION) in rendered.REVISION
    first = fingerprint(open_images("demo:48", CONFIG))
    monkeypatch.setattr(rendered, "REVISION", rendered.REVISION.replace(str(VERSION), "0", 1))
    assert first != fingerprint(open_images("demo:48", CONFIG))


def test_batches_are_in_order():
    dataset = open_images("demo:50", CONFIG)
    loader = batches(dataset, 16, workers=2)
    labels = torch.cat([batch for _, batch, _ in loader])
    assert labels.tolist() == dataset.labels
    assert loader.skipped == 0


def test_test_images_are_none_of_the_training_images():
    assert TRAINING_SEED != TEST_SEED
    first = {render(TRAINING_SEED, index).image.tobytes() for index in range(100)}
    assert not first & {render(TEST_SEED, index).image.tobytes() for index in range(100)}


@pytest.mark.parametrize("data", ["demo:", "demo:0", "demo:-3", "demo:many", "demo:1.5"])
def test_a_senseless_count_is_refused(data):
    with pytest.raises(UsageError, match="demo:500"):
        open_images(data, CONFIG)


def test_a_model_with_other_classes_is_told_so():
    with pytest.raises(InputError, match=f"{len(CLASSES)} classes of demo_vit.*has 1000"):
        open_images("demo", CONFIG, num_classes=1000)


def test_a_folder_called_demo_can_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    with pytest.raises(InputError, match="has no images"):
        open_images("./demo", CONFIG)
