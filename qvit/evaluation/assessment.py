"""How good a quantized folder, or a float model, is on images: open, predict, compare."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvit import zoo
from qvit.data import DataConfig, ImageFolder, fingerprint, open_images
from qvit.deployment import QuantViT
from qvit.deployment.placement import require_device, resolve_backend
from qvit.deployment.provenance import find_origin, read_architecture
from qvit.evaluation.accuracy import Predictions, compare, predict
from qvit.evaluation.float_cache import cache_float_logits, cached_float_logits

logger = logging.getLogger("qvit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Which images, and how they are fed.

    Attributes:
        data: A folder with one folder a class, or another source that timm reads.
        class_map: A file with the class names in index order; None goes by the folders' names.
        limit: So many images at most.
        crop_pct: Replaces the model's own crop fraction.
        crop_mode: Replaces the model's own crop mode.
        batch_size: Images at a time.
    """

    data: str
    class_map: str | None = None
    limit: int | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    batch_size: int = 32

    def open(self, settings: dict[str, Any], num_classes: int) -> ImageFolder:
        """List them under a model's preprocessing; raises InputError if they do not fit it."""
        config = DataConfig.from_pretrained_cfg(
            settings, crop_pct=self.crop_pct, crop_mode=self.crop_mode
        )
        return open_images(
            self.data, config, class_map=self.class_map, num_classes=num_classes, limit=self.limit
        )


def assess_folder(
    folder: Path,
    images: Images,
    *,
    float_weights: Path | None = None,
    device: str = "cpu",
    backend: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluates a quantized folder on labelled images and compares it with its float model.

    The float model's answers are kept in the folder and used again for the same images and weights.

    Args:
        folder: As `qvit quantize` writes it.
        images: What to evaluate on.
        float_weights: The float model's weights; None takes those that the folder names.
        device: "cpu" or "cuda".
        backend: As in QuantViT.from_pretrained.
        progress: Show bars on stderr.

    Returns:
        `model`, `scheme`, `folder`, `backend`, and what `qvit.evaluation.Evaluation.to_dict` holds;
        `float.top1`, `agreement` and `kl` are None where the float model is not at hand.

    Raises:
        InputError: The folder, the data, the class map or the float weights do not fit.
        RequirementError: The device or the backend is missing.
    """
    require_device(device)
    backend = resolve_backend(backend, device)
    model = QuantViT.from_pretrained(folder, device=device, backend=backend)
    architecture = read_architecture(folder)
    dataset = images.open(model.data_config.to_dict(), architecture.num_classes)
    floats = _float_predictions(folder, float_weights, dataset, images.batch_size, device, progress)
    predictions = predict(model, dataset, batch_size=images.batch_size, progress=progress)
    return {
        "model": architecture.timm_name,
        "scheme": model.scheme,
        "folder": str(folder),
        "backend": backend,
    } | compare(predictions, floats).to_dict()


def assess_float(
    source: zoo.Source, images: Images, *, device: str = "cpu", progress: bool = True
) -> dict[str, Any]:
    """Evaluates a float model; the result is that of `assess_folder`, its float fields None."""
    require_device(device)
    dataset = images.open(source.pretrained_cfg, source.num_classes)
    model = zoo.load(source).to(device)
    predictions = predict(model, dataset, batch_size=images.batch_size, progress=progress)
    return {
        "model": source.timm_name,
        "scheme": None,
        "folder": None,
        "backend": None,
    } | compare(predictions).to_dict()


def _float_predictions(
    folder: Path,
    float_weights: Path | None,
    dataset: ImageFolder,
    batch_size: int,
    device: str,
    progress: bool,
) -> Predictions | None:
    origin = find_origin(folder, float_weights)
    key = fingerprint(dataset)
    if origin.weights_sha256 is not None:
        kept = cached_float_logits(folder, key, origin.weights_sha256)
        if kept is not None:
            return kept
    if origin.source is None:
        return None
    model = zoo.load(origin.source).to(device)
    predictions = predict(model, dataset, batch_size=batch_size, progress=progress)
    cache_float_logits(folder, key, predictions, origin.weights_sha256)
    return predictions
