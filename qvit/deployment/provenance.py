"""The float model that a quantized folder was made from: its architecture, and its weights if they
are still there.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qvit.demo.packaged import MODELS
from qvit.deployment import checkpoint
from qvit.errors import InputError
from qvit.zoo import Source

logger = logging.getLogger("qvit")

_WAY_OUT = "name its weights to compare with it: `qvit eval --float-weights FILE`, `qvit sense --weights FILE`"


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
    """Where a folder's float model can be had.

    Attributes:
        source: How to load it; None where the weights are gone or changed.
        weights_sha256: Of the weights it was made from; None where that is not known.
    """

    source: Source | None
    weights_sha256: str | None


def describe_origin(source: Source, weights: Path | None) -> dict[str, Any]:
    """What run.json keeps of the float model, for `find_origin`. `weights`: the file that was read."""
    return {
        "name": source.name,
        "timm_name": source.timm_name,
        "pretrained": source.pretrained,
        "hub_id": source.pretrained_cfg.get("hf_hub_id"),
        "weights": None
        if weights is None
        else {"path": str(weights.resolve()), "sha256": checkpoint.hash_file(weights)},
    }


def read_architecture(folder: Path) -> Source:
    """The float architecture behind a quantized folder, with random weights, from config.json.

    Raises:
        InputError: config.json is absent or does not describe a model.
    """
    return architecture_of(checkpoint.read_config(folder), str(folder))


def architecture_of(config: Mapping[str, Any], name: str) -> Source:
    """The same from the values of config.json; `name`: what messages call the model."""
    cfg = dict(config["pretrained_cfg"])
    return Source(
        name=name,
        architecture=config["architecture"],
        tag=cfg.get("tag") or "",
        pretrained=False,
        pretrained_cfg=cfg | {"num_classes": config["num_classes"]},
        model_args=dict(config.get("model_args") or {}),
    )


def find_origin(folder: Path, float_weights: Path | None = None) -> Origin:
    """Find the float model of a folder.

    A recorded file that is gone or has changed is no error: the log says so, and the source is
    None.

    Args:
        folder: The quantized model.
        float_weights: A file to use whatever was recorded; None goes by run.json.

    Raises:
        InputError: `float_weights` does not exist, or the folder is broken.
    """
    architecture = read_architecture(folder)
    if float_weights is not None:
        if not float_weights.is_file():
            raise InputError(f"--float-weights {float_weights}: no such file")
        source = dataclasses.replace(architecture, pretrained=True, weights=float_weights)
        return Origin(source, checkpoint.hash_file(float_weights))
    source = checkpoint.read_run(folder).get("source") or {}
    if source.get("pretrained") is False:
        logger.info("%s was made from random weights: there is no float model to compare", folder)
        return Origin(None, None)
    recorded = source.get("weights") or {}
    digest = recorded.get("sha256")
    if not recorded.get("path"):
        logger.info("%s does not say where its float weights are; %s", folder, _WAY_OUT)
        return Origin(None, digest)
    path = Path(recorded["path"])
    packaged = MODELS.get(source.get("name", ""))
    if not path.is_file() and packaged is not None:  # another installation's path
        path = packaged / "model.safetensors"
    if not path.is_file():
        logger.info("the float weights are no longer at %s; %s", path, _WAY_OUT)
        return Origin(None, digest)
    if checkpoint.hash_file(path) != digest:
        logger.info("the float weights at %s have changed since; %s", path, _WAY_OUT)
        return Origin(None, digest)
    return Origin(dataclasses.replace(architecture, pretrained=True, weights=path), digest)
