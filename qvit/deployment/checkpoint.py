"""The checkpoint folder: written whole, and read with suspicion.

model.safetensors   weights at their widths, fp32 scales, biases and norms, see storage.py; no pickle
config.json         timm's root (architecture, num_classes, pretrained_cfg), and "quantization_config"
recipe.yaml         the resolved recipe; `qvit quantize --recipe` replays it
run.json            where the float weights were, versions, seed, hashes, timings
README.md           model card
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qvit import machine
from qvit.data import DataConfig
from qvit.deployment.layer_names import shorten
from qvit.deployment.storage import AGAIN, WEIGHTS, check_header, load_weights
from qvit.errors import InputError
from qvit.models.config import ViTConfig
from qvit.models.dense import IntegerDense
from qvit.models.validity import check_executable
from qvit.models.vit import ViT
from qvit.quant.schemes import LinearScheme, ModelScheme

FORMAT_VERSION = 3
CONFIG, RECIPE, RUN, CARD = "config.json", "recipe.yaml", "run.json", "README.md"


def quantization_config(config: ViTConfig, scheme: ModelScheme, name: str) -> dict[str, Any]:
    """The part of config.json that rebuilds the integer model."""
    return {
        "quant_method": "qvit",
        "format_version": FORMAT_VERSION,
        "scheme": name,
        "model": config.to_dict(),
        "tensors": scheme.to_dict(),
    }


def adapt_config(config: Mapping[str, Any], shape: ViTConfig) -> dict[str, Any]:
    """config.json of a model whose image size or classifier was changed since it was read; `shape` is its own now."""
    quantization = config["quantization_config"]
    scheme = ModelScheme.from_dict(quantization["tensors"])
    kept = {name: scheme.linears[name] for name in shape.linears()}
    changed = {"img_size": list(shape.image_size), "num_classes": shape.num_classes}
    return {
        **config,
        "num_classes": shape.num_classes,
        "model_args": (config.get("model_args") or {}) | changed,
        "pretrained_cfg": {
            **config["pretrained_cfg"],
            "input_size": [shape.in_chans, *shape.image_size],
        },
        "quantization_config": {
            **quantization,
            "model": shape.to_dict(),
            "tensors": dataclasses.replace(scheme, linears=kept).to_dict(),
        },
    }


def hash_file(path: Path) -> str:
    """The sha256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Indented JSON with a final newline, written beside and renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def locate(path: str | Path) -> Path:
    """A local folder as it is; `org/name` through the hub's cache.

    Raises InputError where there is no such folder, RequirementError where a download fails.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    name = str(path)
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or folder.parent.exists():
        raise InputError(f"there is no folder {path}; `qvit quantize MODEL -o {path}` writes one")
    from qvit.zoo.hub import download

    advice = "Check the name, or point HF_ENDPOINT at a mirror that can be reached"
    files = [download(name, [file], advice=advice) for file in (CONFIG, WEIGHTS)]
    return files[0].parent


def load(folder: Path) -> tuple[ViT, dict[str, Any]]:
    """The integer model and config.json. Raises InputError for anything that does not fit, saying what."""
    config = read_config(folder)
    # the header is believed before memory is: a damaged configuration may ask for terabytes
    check_header(folder, _build(config, folder, device="meta"))
    model = _build(config, folder)
    load_weights(folder, model)
    machine.release_memory()  # of the file and of what unpacking took
    return model.eval().requires_grad_(False), config


def describe(folder: Path) -> dict[str, Any]:
    """What the folder holds, from configuration and file headers alone; the same errors as `load`."""
    folder = locate(folder)
    config = read_config(folder)
    check_header(folder, _build(config, folder, device="meta"))
    quantization, pretrained = config["quantization_config"], config["pretrained_cfg"]
    run = read_run(folder)
    source = run.get("source") or {}
    return {
        "folder": str(folder),
        "architecture": config["architecture"],
        "scheme": quantization["scheme"],
        "num_classes": config["num_classes"],
        "input_size": pretrained.get("input_size"),
        "license": pretrained.get("license") if source.get("pretrained", True) else None,
        "weights_bytes": (folder / WEIGHTS).stat().st_size,
        "format_version": quantization["format_version"],
        "bits": _bits(quantization["tensors"]),
        "residual": quantization["tensors"]["residual"],
        "source": source or None,
        "versions": run.get("versions"),
        "seed": run.get("seed"),
    }


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, refused unless it is of this format. Raises InputError."""
    config = _read_json(folder / CONFIG)
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict) or quantization.get("quant_method") != "qvit":
        raise InputError(
            f"{folder / CONFIG} does not describe a model quantized by qvit (no quantization_config "
            "with quant_method 'qvit'); quantize it first with `qvit quantize`"
        )
    version = quantization.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{folder} has format version {version!r}, and this qvit reads version {FORMAT_VERSION}; "
            "install the qvit that wrote it (run.json names it), or quantize the model again"
        )
    for key, kind in (("architecture", str), ("num_classes", int), ("pretrained_cfg", dict)):
        if not isinstance(config.get(key), kind):
            raise InputError(f"{folder / CONFIG} has no valid {key!r}; {AGAIN}")
    if not isinstance(quantization.get("scheme"), str):
        raise InputError(f"{folder / CONFIG} does not name its scheme; {AGAIN}")
    try:
        DataConfig.from_pretrained_cfg(config["pretrained_cfg"]).transform()
    except (
        Exception
    ) as error:  # timm and torchvision have a kind of error for each kind of nonsense
        raise InputError(
            f"pretrained_cfg in {folder / CONFIG} is no preprocessing "
            f"({type(error).__name__}: {error}); {AGAIN}"
        ) from error
    return config


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder was written by qvit, in whatever version or condition."""
    try:
        quantization = _read_json(folder / CONFIG).get("quantization_config")
    except InputError:
        return False
    return isinstance(quantization, dict) and quantization.get("quant_method") == "qvit"


def read_run(folder: Path) -> dict[str, Any]:
    """run.json, or nothing where a folder came without it. Raises InputError where it is damaged."""
    path = Path(folder) / RUN
    run = _read_json(path) if path.is_file() else {}
    source = run.get("source") or {}
    weights = (source.get("weights") or {}) if isinstance(source, dict) else None
    if not isinstance(weights, dict) or not isinstance(weights.get("path", ""), str):
        raise InputError(f"{path} does not say where the model came from; remove it, or {AGAIN}")
    return run


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path.parent} has no {path.name}; {AGAIN}") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; {AGAIN}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a JSON object; {AGAIN}")
    return values


def _build(config: dict[str, Any], folder: Path, device: str = "cpu") -> ViT:
    quantization = config["quantization_config"]
    try:
        shape = ViTConfig.from_dict(quantization["model"])
        scheme = ModelScheme.from_dict(quantization["tensors"])
        check_executable(shape, scheme)
        if shape.num_classes != config["num_classes"]:
            raise ValueError(
                f"{shape.num_classes} classes, and the root says {config['num_classes']}"
            )
        with torch.device(device):
            return ViT(shape, scheme, IntegerDense)
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
    ) as error:
        raise InputError(
            f"quantization_config in {folder / CONFIG} does not describe a model "
            f"({type(error).__name__}: {error}); {AGAIN}"
        ) from error


def _bits(tensors: dict[str, Any]) -> list[dict[str, Any]]:
    kinds = "linears", "attentions"
    known = [name for kind in kinds for entry in tensors[kind] for name in entry["targets"]]
    rows = [
        {
            "modules": shorten(entry["targets"], known),
            "weight_bits": scheme.weight.mean_bits,
            "weight_bits_in_memory": scheme.container_bits,
            "weight_group": scheme.weight.group,
            "input_bits": scheme.input.bits,
            "input_prefix": scheme.input.prefix,
            "input_group": scheme.input.group,
            "transform": scheme.transform,
            **({"head_bits": list(scheme.weight.slices)} if len(scheme.weight.slices) > 1 else {}),
        }
        for entry in tensors["linears"]
        for scheme in [LinearScheme.from_dict(entry["scheme"])]
    ]
    rows += [
        {
            "modules": shorten(entry["targets"], known),
            "qkv_bits": entry["scheme"]["qkv"]["bits"],
            "softmax_bits": entry["scheme"]["softmax_bits"],
        }
        for entry in tensors["attentions"]
    ]
    return rows
