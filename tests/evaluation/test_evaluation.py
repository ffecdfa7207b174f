"""Accuracy, comparison with a float model, and its cached logits."""

import dataclasses
import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from qvit.data import DataConfig, ImageFolder, fingerprint, open_images
from qvit.errors import InputError, QvitError, UsageError
from qvit.evaluation import (
    Predictions,
    cache_float_logits,
    cached_float_logits,
    compare,
    predict,
)

CONFIG = DataConfig(input_size=(3, 16, 16), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), crop_pct=1.0)


@pytest.fixture
def dataset(tmp_path: Path) -> ImageFolder:
    """Six classes of 20 plain images; the red value is 40 times the class."""
    for label in range(6):
        folder = tmp_path / "images" / f"class{label}"
        folder.mkdir(parents=True)
        for i in range(20):
            Image.new("RGB", (20, 20), (40 * label, i, 0)).save(folder / f"{i}.png")
    return open_images(tmp_path / "images", CONFIG, num_classes=6)


def nearest_red(images: torch.Tensor) -> torch.Tensor:
    """Logits that are highest for the class whose red it is."""
    red = images[:, 0].mean(dim=(1, 2)) * 255
    return -((red[:, None] - 40 * torch.arange(6)) / 40).square()


def made(logits: torch.Tensor, labels: list[int]) -> Predictions:
    indices = torch.arange(len(labels))
    return Predictions(logits=logits, labels=torch.tensor(labels), indices=indices, skipped=0)


# Predicting


def test_predictions_are_in_order_and_right(dataset: ImageFolder) -> None:
    found = predict(nearest_red, dataset, batch_size=7, progress=False)
    assert found.logits.shape == (120, 6)
    assert found.logits.dtype == torch.float32
    assert found.indices.tolist() == list(range(120))
    assert found.labels.tolist() == dataset.labels
    result = compare(found)
    assert (result.top1, result.top5, result.images, result.skipped) == (100.0, 100.0, 120, 0)
    assert result.top1_interval == (100.0, 100.0)


def test_batch_sizes_give_the_same_predictions(dataset: ImageFolder) -> None:
    one = predict(nearest_red, dataset, batch_size=1, progress=False)
    all_at_once = predict(nearest_red, dataset, batch_size=500, progress=False)
    assert torch.equal(one.logits, all_at_once.logits)


def test_a_module_is_run_without_gradients_in_its_own_precision(dataset: ImageFolder) -> None:
    seen = []

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = nearest_red(images) * self.weight
            seen.append((logits.requires_grad, torch.is_inference_mode_enabled()))
            return logits.to(torch.bfloat16)

    found = predict(Model(), dataset, batch_size=60, progress=False)
    assert seen == [(False, True)] * 2
    assert found.logits.dtype == torch.float32


def test_skipped_images_are_counted(tmp_path: Path, dataset: ImageFolder) -> None:
    (tmp_path / "images" / "class2" / "3.png").write_bytes(b"broken")
    found = predict(nearest_red, dataset, progress=False)
    assert (found.skipped, len(found.labels)) == (1, 119)
    assert compare(found).skipped == 1


def test_nothing_is_written_to_stdout(
    dataset: ImageFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(nearest_red, dataset)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("model", "error", "part"),
    [
        (lambda x: torch.zeros(len(x), 3), InputError, "labels up to 5, .* has 3 classes"),
        (lambda x: torch.full((len(x), 6), math.nan), QvitError, "NaN"),
        (lambda x: torch.zeros(len(x), 4, 6), QvitError, r"shape \[32, 4, 6\]"),
        (lambda x: torch.zeros(1, 6), QvitError, r"shape \[1, 6\] for 32 images"),
    ],
)
def test_models_that_do_not_fit_are_refused(
    dataset: ImageFolder, model: nn.Module, error: type[Exception], part: str
) -> None:
    with pytest.raises(error, match=part):
        predict(model, dataset, progress=False)


# Comparing


def test_figures_by_hand() -> None:
    logits = torch.tensor(
        [
            [9.0, 8, 7, 6, 5, 4, 3],  # label 0: first
            [9.0, 8, 7, 6, 5, 4, 3],  # label 4: fifth
            [9.0, 8, 7, 6, 5, 4, 3],  # label 5: sixth
            [3.0, 4, 5, 6, 7, 8, 9],  # label 6: first
        ]
    )
    reference = logits.clone()
    reference[1] = logits[3]
    result = compare(made(logits, [0, 4, 5, 6]), made(reference, [0, 4, 5, 6]))
    assert (result.top1, result.top5) == (50.0, 75.0)
    assert (result.float_top1, result.agreement) == (50.0, 75.0)


def test_kl_is_from_float_to_quantized_in_nats() -> None:
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    q = torch.tensor([[0.25, 0.75], [0.9, 0.1]])
    expected = (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)) / 2
    # adding a constant to the logits changes no probability
    result = compare(made(q.log() + 3, [0, 0]), made(p.log(), [0, 0]))
    assert result.kl == pytest.approx(expected, abs=1e-7)
    assert compare(made(p.log(), [0, 0]), made(p.log(), [0, 0])).kl == pytest.approx(0, abs=1e-12)


def test_kl_over_more_rows_than_one_step_is_the_mean_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(5000, 3, generator=generator) for _ in range(2))
    expected = (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1).mean()
    assert compare(made(q, [0] * 5000), made(p, [0] * 5000)).kl == pytest.approx(
        float(expected), rel=1e-5
    )


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_top5_works_with_few_classes(classes: int) -> None:
    logits = torch.eye(classes)
    result = compare(made(logits, [0] * classes))
    assert result.top5 == 100.0
    assert result.top1 == pytest.approx(100 / classes)


def test_the_interval_is_that_of_resampled_images() -> None:
    right = np.zeros(400)
    right[:300] = 1
    logits = torch.tensor(np.stack([right, 1 - right], axis=1))
    result = compare(made(logits, [0] * 400), seed=1)
    low, high = result.top1_interval
    generator = np.random.default_rng(2)
    resampled = [generator.choice(right, 400).mean() * 100 for _ in range(4000)]
    expected = np.percentile(resampled, [2.5, 97.5])
    assert (low, high) == pytest.approx(tuple(expected), abs=0.5)
    assert compare(made(logits, [0] * 400), seed=1).top1_interval == (low, high)
    assert low < result.top1 < high


def test_the_interval_of_the_drop_is_that_of_resampled_pairs() -> None:
    ours, theirs = np.zeros(400), np.zeros(400)
    ours[:300], theirs[10:330] = 1, 1  # 10 won and 30 lost
    logits = [torch.tensor(np.stack([right, 1 - right], axis=1)) for right in (ours, theirs)]
    result = compare(*(made(each, [0] * 400) for each in logits), seed=1)
    generator = np.random.default_rng(2)
    chosen = generator.integers(0, 400, size=(4000, 400))
    expected = np.percentile((theirs - ours)[chosen].mean(1) * 100, [2.5, 97.5])
    assert result.drop == pytest.approx(5.0)
    assert result.drop_interval == pytest.approx(tuple(expected), abs=0.3)
    assert result.drop_interval is not None
    unpaired = result.top1_interval[1] - result.top1_interval[0]
    assert result.drop_interval[1] - result.drop_interval[0] < 0.8 * unpaired


def test_json_keys() -> None:
    logits = torch.eye(6)
    alone = compare(made(logits, [0] * 6)).to_dict()
    assert alone["float"] == {"top1": None}
    assert (alone["agreement"], alone["kl"]) == (None, None)
    assert (alone["drop"], alone["drop_interval"]) == (None, None)
    both = compare(made(logits, [0] * 6), made(logits, [0] * 6)).to_dict()
    assert json.loads(json.dumps(both)) == both
    assert set(both) == {
        "top1",
        "top5",
        "top1_interval",
        "images",
        "skipped",
        "float",
        "drop",
        "drop_interval",
        "agreement",
        "kl",
    }
    assert (both["float"]["top1"], both["agreement"]) == (both["top1"], 100.0)


def test_predictions_of_other_images_or_classes_are_refused() -> None:
    first = made(torch.eye(3), [0, 1, 2])
    with pytest.raises(UsageError, match="other images"):
        compare(first, dataclasses.replace(first, indices=torch.tensor([0, 1, 5])))
    with pytest.raises(UsageError, match="other images"):
        compare(first, made(torch.eye(3), [0, 1, 1]))
    with pytest.raises(UsageError, match="2 classes"):
        compare(first, made(torch.eye(3)[:, :2], [0, 1, 2]))


# Cached float logits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "quantized"
    path.mkdir()
    (path / "run.json").write_text(json.dumps({"seed": 3}))
    return path


@pytest.fixture
def answers() -> Predictions:
    return dataclasses.replace(made(torch.randn(5, 4), [0, 1, 2, 3, 0]), skipped=2)


KEY = "ab" * 32


def test_kept_logits_come_back_exactly(folder: Path, answers: Predictions) -> None:
    assert cached_float_logits(folder, KEY) is None
    assert cache_float_logits(folder, KEY, answers, "weights")
    assert cache_float_logits(folder, "cd" * 32, answers, "weights")
    found = cached_float_logits(folder, KEY, "weights")
    assert found is not None
    assert found.skipped == 2
    for name in ("logits", "labels", "indices"):
        assert torch.equal(getattr(found, name), getattr(answers, name))
    run = json.loads((folder / "run.json").read_text())
    assert run["seed"] == 3
    assert set(run["float_logits"]) == {KEY, "cd" * 32}
    assert run["float_logits"][KEY]["file"] == f"float_logits/{KEY[:12]}.safetensors"
    assert run["float_logits"][KEY]["images"] == 5
    assert {p.name for p in folder.rglob("*") if p.name.startswith(".")} == set()


def test_logits_of_other_data_or_weights_are_not_used(folder: Path, answers: Predictions) -> None:
    cache_float_logits(folder, KEY, answers, "weights")
    assert cached_float_logits(folder, "cd" * 32, "weights") is None
    assert cached_float_logits(folder, KEY, "others") is None
    assert cached_float_logits(folder, KEY) is not None


@pytest.mark.parametrize("damage", ["truncate", "swap", "remove"])
def test_damaged_logits_are_computed_again(
    folder: Path, answers: Predictions, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    cache_float_logits(folder, KEY, answers)
    cache_float_logits(folder, "cd" * 32, dataclasses.replace(answers, skipped=0))
    file = folder / "float_logits" / f"{KEY[:12]}.safetensors"
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "swap":
        changed = bytearray(file.read_bytes())
        changed[-1] ^= 1
        file.write_bytes(bytes(changed))
    else:
        file.unlink()
    with caplog.at_level(logging.WARNING, logger="qvit"):
        assert cached_float_logits(folder, KEY) is None
    assert "cannot be used" in caplog.text


@pytest.mark.parametrize("content", [None, "", "[]", '{"float_logits": 3}', '{"float_logits": []}'])
def test_a_folder_without_a_usable_run_json_has_nothing_kept(
    folder: Path, content: str | None
) -> None:
    if content is None:
        (folder / "run.json").unlink()
    else:
        (folder / "run.json").write_text(content)
    assert cached_float_logits(folder, KEY) is None


def test_a_folder_that_cannot_be_written_is_a_warning(
    folder: Path, answers: Predictions, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "float_logits").write_text("in the way")  # also stops root, unlike permissions
    with caplog.at_level(logging.WARNING, logger="qvit"):
        assert not cache_float_logits(folder, KEY, answers)
    assert "not kept" in caplog.text
    assert json.loads((folder / "run.json").read_text()) == {"seed": 3}


def test_a_failed_write_leaves_the_folder_as_it_was(
    folder: Path, answers: Predictions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)  # what was written beside is there by then
    assert not cache_float_logits(folder, KEY, answers)
    monkeypatch.undo()
    assert json.loads((folder / "run.json").read_text()) == {"seed": 3}
    assert [p for p in folder.rglob("*") if p.is_file()] == [folder / "run.json"]


def test_evaluating_twice_uses_what_was_kept(folder: Path, dataset: ImageFolder) -> None:
    key = fingerprint(dataset)
    first = predict(nearest_red, dataset, progress=False)
    cache_float_logits(folder, key, first, "weights")
    kept = cached_float_logits(folder, fingerprint(dataset), "weights")
    assert compare(first, kept) == compare(first, first)
