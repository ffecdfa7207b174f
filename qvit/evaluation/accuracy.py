"""Run a model over labelled images, and measure what it said."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from qvit.data import ImageFolder, batches
from qvit.errors import InputError, QvitError, UsageError

_RESAMPLES = 1000
_ROWS = 4096  # of logits compared at once: 50,000 x 1000 in fp64 would need 400 MB a copy


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a model said about the readable images of a data set.

    Attributes:
        logits: fp32 [N, classes].
        labels: int64 [N].
        indices: int64 [N], positions in the data set.
        skipped: Images that could not be decoded.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    skipped: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Accuracy in percent, with what is known about the float model.

    Attributes:
        top1: Percent of images whose label has the highest logit.
        top5: Percent of images whose label is among the five highest; all classes where there are
            fewer.
        top1_interval: The 2.5th and 97.5th percentile of top1 over 1000 bootstrap resamples of the
            images.
        images: Images that were evaluated.
        skipped: Images that could not be decoded.
        float_top1: Of the float model on the same images; None without one, as the four below.
        drop: Points of top1 that the float model has more.
        drop_interval: Of the drop, as of top1. Both models see the same resampled images, so that it is narrower than
            the two intervals would make it.
        agreement: Percent of images on which both models have the same highest logit.
        kl: Mean over images of KL(float || quantized), in nats.
    """

    top1: float
    top5: float
    top1_interval: tuple[float, float]
    images: int
    skipped: int
    float_top1: float | None = None
    drop: float | None = None
    drop_interval: tuple[float, float] | None = None
    agreement: float | None = None
    kl: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON; `float` always has a `top1`, which is null without a float model."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "top1_interval": list(self.top1_interval),
            "images": self.images,
            "skipped": self.skipped,
            "float": {"top1": self.float_top1},
            "drop": self.drop,
            "drop_interval": None if self.drop_interval is None else list(self.drop_interval),
            "agreement": self.agreement,
            "kl": self.kl,
        }


def predict(
    model: Callable[[torch.Tensor], torch.Tensor],
    dataset: ImageFolder,
    *,
    batch_size: int = 32,
    progress: bool = True,
    workers: int | None = None,
) -> Predictions:
    """Run a model over a data set, in order.

    Args:
        model: Maps images float32 [B, 3, height, width] to logits [B, classes]. A module gets the
            images on its own device.
        dataset: The images.
        batch_size: Images a call.
        progress: Show a bar on stderr, if that is a terminal.
        workers: As in `batches`.

    Raises:
        UsageError: The batch size is not positive.
        InputError: More than 1 % of the images cannot be read, or labels go beyond the model's
            classes.
        QvitError: The logits have another shape, or are not finite.
    """
    loader = batches(dataset, batch_size, workers=workers)
    device = _device_of(model)
    logits, labels, indices = [], [], []
    # disable=None: silent where stderr is not a terminal
    bar = tqdm(total=len(dataset), unit="image", disable=None if progress else True)
    with bar, torch.inference_mode():
        for images, batch_labels, batch_indices in loader:
            output = model(images.to(device)).float().cpu()
            _check_logits(output, len(images), dataset)
            logits.append(output)
            labels.append(batch_labels)
            indices.append(batch_indices)
            bar.update(len(images))
    if not logits:
        raise InputError("None of the images can be read, so there is nothing to evaluate.")
    return Predictions(torch.cat(logits), torch.cat(labels), torch.cat(indices), loader.skipped)


def compare(
    predictions: Predictions, float_predictions: Predictions | None = None, *, seed: int = 0
) -> Evaluation:
    """Measure predictions against the labels, and against a float model's on the same images.

    Args:
        predictions: Of the model in question.
        float_predictions: Of its float original; None leaves those figures out.
        seed: Of the bootstrap.

    Raises:
        UsageError: The two do not belong together: other images, or another number of classes.
    """
    labels = predictions.labels
    top1 = predictions.logits.argmax(dim=1)
    five = predictions.logits.topk(min(5, predictions.logits.shape[1]), dim=1).indices
    right = top1 == labels
    float_top1 = drop = drop_interval = agreement = kl = None
    if float_predictions is not None:
        _check_same_images(predictions, float_predictions)
        float_choice = float_predictions.logits.argmax(dim=1)
        float_right = float_choice == labels
        float_top1 = _percent(float_right)
        drop = float_top1 - _percent(right)
        drop_interval = _bootstrap_difference(float_right & ~right, right & ~float_right, seed)
        agreement = _percent(float_choice == top1)
        kl = float(divergences(float_predictions.logits, predictions.logits).mean())
    return Evaluation(
        top1=_percent(right),
        top5=_percent((five == labels[:, None]).any(dim=1)),
        top1_interval=_bootstrap(int(right.sum()), len(labels), seed),
        images=len(labels),
        skipped=predictions.skipped,
        float_top1=float_top1,
        drop=drop,
        drop_interval=drop_interval,
        agreement=agreement,
        kl=kl,
    )


def _device_of(model: Callable[[torch.Tensor], torch.Tensor]) -> torch.device:
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return torch.device("cpu")


def _check_logits(logits: torch.Tensor, count: int, dataset: ImageFolder) -> None:
    if logits.ndim != 2 or len(logits) != count:
        raise QvitError(
            f"The model returned a tensor of shape {list(logits.shape)} for {count} images;"
            f" expected logits [{count}, classes]."
        )
    if not logits.isfinite().all():
        raise QvitError(
            "The model returned NaN or infinite logits. Its weights or its backend are broken: try"
            " `qvit doctor`, and another backend."
        )
    highest = max(dataset.labels)
    if highest >= logits.shape[1]:
        raise InputError(
            f"The data has labels up to {highest}, but the model has {logits.shape[1]} classes."
            " Give the class map of the model's own classes."
        )


def _check_same_images(first: Predictions, second: Predictions) -> None:
    if not torch.equal(first.indices, second.indices) or not torch.equal(
        first.labels, second.labels
    ):
        raise UsageError(
            "The float model's predictions are of other images, so that the two cannot be compared."
        )
    if first.logits.shape != second.logits.shape:
        raise UsageError(
            f"The float model has {second.logits.shape[1]} classes and this one"
            f" {first.logits.shape[1]}: its weights are not those that this model was made from."
        )


def _percent(hits: torch.Tensor) -> float:
    return 100.0 * int(hits.sum()) / len(hits)


def _bootstrap(right: int, total: int, seed: int) -> tuple[float, float]:
    """Drawing `total` images with replacement, of which `right` are right, is a binomial draw."""
    draws = np.random.default_rng(seed).binomial(total, right / total, size=_RESAMPLES)
    low, high = np.percentile(100.0 * draws / total, [2.5, 97.5])
    return float(low), float(high)


def _bootstrap_difference(lost: torch.Tensor, won: torch.Tensor, seed: int) -> tuple[float, float]:
    """The same for images lost and won; resampling them is a multinomial draw."""
    total = len(lost)
    shares = [int(lost.sum()) / total, int(won.sum()) / total]
    draws = np.random.default_rng(seed).multinomial(
        total, [*shares, 1.0 - sum(shares)], size=_RESAMPLES
    )
    low, high = np.percentile(100.0 * (draws[:, 0] - draws[:, 1]) / total, [2.5, 97.5])
    return float(low), float(high)


def divergences(reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(reference || logits) of every image in nats, fp64 [N]; both logits [N, classes]."""
    parts = []
    for start in range(0, len(logits), _ROWS):
        p = F.log_softmax(reference[start : start + _ROWS].double(), dim=1)
        q = F.log_softmax(logits[start : start + _ROWS].double(), dim=1)
        parts.append(F.kl_div(q, p, reduction="none", log_target=True).sum(dim=1))
    return torch.cat(parts)
