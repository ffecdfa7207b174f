"""What a MODEL or FOLDER|MODEL argument means: a quantized folder on this disk, or the name of a float
model, and what is said and derived of such a name.
"""

import json
from pathlib import Path
from typing import Any

from qvit.cli.exits import print_line
from qvit.errors import InputError

_PREFIXES = ("hf-hub:", "hf_hub:", "local-dir:")


def as_folder(target: str) -> Path | None:
    """The quantized folder that `target` names, or None where it names a float model.

    A folder without `quantization_config` is a float model in timm's format. A path to nothing is
    refused here, since it would otherwise be looked up as a model name and the answer would be
    about names.
    """
    if target.startswith(_PREFIXES):
        return None
    path = Path(target)
    if path.is_dir():
        return path if _is_quantized(path) else None
    if path.exists():
        raise InputError(
            f"{target} is a file; name the folder that `qvit quantize` wrote, or a model"
        )
    if path.is_absolute() or target.startswith(".") or len(path.parts) > 1:
        raise InputError(
            f"no such folder: {target}. `qvit quantize MODEL -o {target}` would write one; "
            f"for a model on the Hugging Face hub write hf-hub:{target}"
        )
    return None


def announce(source: Any) -> None:
    """Say on stderr which float model a name stands for, and what its licence forbids."""
    origin = "" if source.pretrained else ", random weights"
    if source.weights is not None:
        origin = f", weights from {source.weights}"
    print_line(f"{source.name} = {source.timm_name}{origin}")
    if source.non_commercial and source.pretrained:
        print_line(f"these weights are licensed {source.license}: not for commercial use")


def name_folder(model: str) -> str:
    """A folder's name for what is made from a model: `hf-hub:org/vit@main` gives `vit`."""
    return model.rstrip("/").split(":")[-1].split("/")[-1].split("@")[0]


def _is_quantized(folder: Path) -> bool:
    config = folder / "config.json"
    if not config.is_file():
        # Files of a checkpoint without its config: let the checkpoint's own reader say what is
        # missing.
        return (folder / "model.safetensors").is_file()
    try:
        return "quantization_config" in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return True  # broken: the checkpoint's own reader says how
