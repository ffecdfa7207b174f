"""Keep what a verb has found beside the model, for the page that `qvit report` makes of it."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qvit.kept import EVALUATION

logger = logging.getLogger("qvit")


def keep_evaluation(folder: Path, found: Mapping[str, Any]) -> None:
    """Keep a result of `qvit eval` with its `limit`, unless it is of the first images only and one of all is there."""
    try:
        kept = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))
        whole = isinstance(kept, dict) and kept["limit"] is None
    except (OSError, ValueError, KeyError):
        whole = False
    if found["limit"] is not None and whole:
        logger.warning(
            "%s is of all images and stays; these %s with --limit are not kept",
            folder / EVALUATION,
            found["images"],
        )
        return
    keep_beside(folder, EVALUATION, found)


def keep_beside(folder: Path, name: str, found: Mapping[str, Any]) -> None:
    """Write a result into a quantized folder; one that cannot be written to is no error, but said."""
    from qvit.deployment import checkpoint

    try:
        checkpoint.write_json(folder / name, found)
    except OSError as error:
        logger.warning("%s was not kept in %s: %s", name, folder, error.strerror)
