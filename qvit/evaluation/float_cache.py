"""The float model's logits, kept in a quantized folder so that the next evaluation is quicker.

`run.json` says under "float_logits", by data fingerprint, which file holds them and what they were
made from.
"""

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from qvit.deployment import checkpoint
from qvit.errors import InputError
from qvit.evaluation.accuracy import Predictions

logger = logging.getLogger("qvit")
_SECTION = "float_logits"


def cache_float_logits(
    folder: Path, fingerprint: str, predictions: Predictions, weights_sha256: str | None = None
) -> bool:
    """Keep a float model's predictions in a quantized model's folder.

    A folder that cannot be written is no error: a warning is logged, and the next evaluation
    computes them again.

    Args:
        folder: The quantized model, with its run.json.
        fingerprint: Of data and preprocessing, as `qvit.data.fingerprint` returns it.
        predictions: Of the float model.
        weights_sha256: Of the float weights.

    Returns:
        Whether they were kept.
    """
    try:
        run = checkpoint.read_run(folder)
        name = f"{_SECTION}/{fingerprint[:12]}.safetensors"
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        tensors = {
            "logits": predictions.logits.float().contiguous(),
            "labels": predictions.labels.contiguous(),
            "indices": predictions.indices.contiguous(),
        }
        beside = _sibling(target)
        try:
            save_file(tensors, beside)
            digest = hashlib.sha256(beside.read_bytes()).hexdigest()
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
        entry = {
            "file": name,
            "sha256": digest,
            "weights_sha256": weights_sha256,
            "images": len(predictions.labels),
            "skipped": predictions.skipped,
        }
        run[_SECTION] = {**run.get(_SECTION, {}), fingerprint: entry}
        checkpoint.write_json(folder / checkpoint.RUN, run)
    except (InputError, OSError, ValueError, TypeError, SafetensorError) as error:
        logger.warning("the float logits are not kept in %s: %s", folder, error)
        return False
    return True


def cached_float_logits(
    folder: Path, fingerprint: str, weights_sha256: str | None = None
) -> Predictions | None:
    """The predictions that `cache_float_logits` kept, or None where they have to be computed.

    Args:
        folder: The quantized model.
        fingerprint: Of data and preprocessing.
        weights_sha256: Of the float weights in question; None takes those that are kept, whatever
            made them.

    Returns:
        The predictions; None where there are none of this data and these weights. A kept file that
        is damaged counts as none, with a warning.
    """
    try:
        entry = checkpoint.read_run(folder).get(_SECTION, {}).get(fingerprint)
    except (InputError, AttributeError):
        return None
    if not isinstance(entry, dict):
        return None
    if weights_sha256 is not None and entry.get("weights_sha256") != weights_sha256:
        return None
    try:
        return _read_predictions(folder, entry)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        logger.warning("the float logits kept in %s cannot be used: %s", folder, error)
        return None


def _read_predictions(folder: Path, entry: dict[str, Any]) -> Predictions:
    data = (folder / entry["file"]).read_bytes()
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise ValueError(f"{entry['file']} is not the file that was written")
    tensors = load(data)
    return Predictions(
        logits=tensors["logits"].to(torch.float32),
        labels=tensors["labels"],
        indices=tensors["indices"],
        skipped=int(entry["skipped"]),
    )


def _sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")
