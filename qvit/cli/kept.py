"""What verbs keep beside a model: eval.json, bench.json, sense.json, from which `qvit report` makes its page."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EVALUATION, LATENCY, SENSITIVITY = "eval.json", "bench.json", "sense.json"

logger = logging.getLogger("qvit")


def keep_beside(folder: Path, name: str, found: Mapping[str, Any]) -> None:
    """Write a result into a quantized folder; one that cannot be written to is no error, but said."""
    from qvit.deployment import checkpoint

    try:
        checkpoint.write_json(folder / name, found)
    except OSError as error:
        logger.warning("%s was not kept in %s: %s", name, folder, error.strerror)
