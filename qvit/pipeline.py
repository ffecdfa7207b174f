"""The whole recipe on one page: from a float model's name to the folder with its integers."""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from qvit import __version__, zoo
from qvit.deployment import checkpoint
from qvit.deployment.conversion import to_integers
from qvit.deployment.folders import check_target, written_whole
from qvit.deployment.model_card import model_card
from qvit.models.calibration import set_weight_ranges
from qvit.models.config import ViTConfig
from qvit.models.dense import weight_groups
from qvit.models.folding import fold
from qvit.models.plan import plan_scheme
from qvit.models.timm_import import read_config, read_model
from qvit.quant.schemes import ModelScheme
from qvit.recipe import Recipe
from qvit.zoo import Source

# Seconds per million float weights, load to folder: 9 s for ViT-Tiny, 32 s for DeiT-S on two cores.
_SECONDS_PER_MILLION = 1.5


def quantize(
    source: Source, recipe: Recipe, out: Path, *, overwrite: bool = False, progress: bool = True
) -> dict[str, Any]:
    """Quantize a float model without data and write the checkpoint folder `out`.

    Returns the path, bytes, ratio to the fp32 weights, sha256 of model.safetensors and seconds of each stage.
    Raises UsageError for a model that is no plain ViT or a target that may not be written, and the errors of
    `zoo.load`; nothing is left behind then.
    """
    check_target(out, overwrite=overwrite, marker=checkpoint.CONFIG)
    stages = _Stages(progress)
    with stages("load"):
        weights = zoo.fetch(source)
        model = zoo.load(source, seed=recipe.seed)
        vit = read_model(model, source.pretrained_cfg)
        fp32_bytes = _fp32_bytes(model)
    with stages("fold"):
        scheme = plan_scheme(vit.config, recipe)
        simulated = fold(vit, scheme, seed=recipe.seed)
    with stages("ranges"):
        set_weight_ranges(simulated, recipe.weights.range)
    with stages("pack"):
        integer = to_integers(simulated, scheme)
    with stages("write"), written_whole(out) as folder:
        checkpoint.save_weights(integer, folder)
        size = (folder / checkpoint.WEIGHTS).stat().st_size
        digest = checkpoint.hash_file(folder / checkpoint.WEIGHTS)
        origin = _origin(source, weights)
        config = _config_json(source, vit.config, scheme, recipe)
        checkpoint.write_json(folder / checkpoint.CONFIG, config)
        (folder / checkpoint.RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")
        run = _run_json(origin, recipe, digest, stages.seconds)
        checkpoint.write_json(folder / checkpoint.RUN, run)
        card = _card(source, origin, recipe, size, size / fp32_bytes)
        (folder / checkpoint.CARD).write_text(card, encoding="utf-8")
        checkpoint.load(folder)  # what cannot be read back must not be called finished
    return {
        "path": str(out),
        "model": source.timm_name,
        "scheme": recipe.scheme,
        "bytes": size,
        "fp32_bytes": fp32_bytes,
        "ratio": round(size / fp32_bytes, 4),
        "sha256": digest,
        "seconds": {name: round(value, 2) for name, value in stages.seconds.items()},
    }


def plan(source: Source, recipe: Recipe) -> dict[str, Any]:
    """What `quantize` would do, without weights: model, scheme, and estimates of bytes and seconds."""
    import timm

    with torch.device("meta"):
        model = timm.create_model(source.architecture, pretrained=False, **_model_args(source))
    config = read_config(model, source.pretrained_cfg)
    scheme = plan_scheme(config, recipe)
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "model": source.timm_name,
        "scheme": recipe.scheme,
        "license": source.license,
        "linears": len(scheme.linears),
        "parameters": parameters,
        "estimated_bytes": _estimate_bytes(config, scheme, parameters),
        "fp32_bytes": 4 * parameters,
        "estimated_seconds": round(10 + _SECONDS_PER_MILLION * parameters / 1e6),
        "reads_images": False,
    }


class _Stages:
    """Times the stages and shows them as one progress bar on stderr."""

    def __init__(self, progress: bool) -> None:
        self.seconds: dict[str, float] = {}
        self._bar = tqdm(total=5, unit="stage", leave=False, disable=None if progress else True)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._bar.set_description(name)
        start = time.perf_counter()
        try:
            yield
        except BaseException:
            self._bar.close()
            raise
        self.seconds[name] = time.perf_counter() - start
        self._bar.update()
        if self._bar.n == self._bar.total:
            self._bar.close()


def _model_args(source: Source) -> dict[str, Any]:
    return {"num_classes": source.num_classes, **source.model_args}


def _fp32_bytes(model: nn.Module) -> int:
    return sum(4 * p.numel() for p in model.parameters())


def _estimate_bytes(config: ViTConfig, scheme: ModelScheme, parameters: int) -> int:
    """Codes and scales of the Linears, fp32 for the rest."""
    total, linear_weights = 0, 0
    for name, (rows, columns) in config.linears().items():
        linear = scheme.linears[name]
        total += rows * columns * linear.storage_bits // 8
        total += 4 * rows * weight_groups(linear, columns) + (columns if linear.transform else 0)
        linear_weights += rows * columns
    return total + 4 * (parameters - linear_weights)


def _origin(source: Source, weights: Path | None) -> dict[str, Any]:
    """Where the float model came from, for `qvit eval` to find it again."""
    return {
        "name": source.name,
        "timm_name": source.timm_name,
        "pretrained": source.pretrained,
        "hub_id": source.pretrained_cfg.get("hf_hub_id"),
        "weights": None
        if weights is None
        else {"path": str(weights.resolve()), "sha256": checkpoint.hash_file(weights)},
    }


def _config_json(
    source: Source, config: ViTConfig, scheme: ModelScheme, recipe: Recipe
) -> dict[str, Any]:
    return {
        "architecture": source.architecture,
        "num_classes": config.num_classes,
        "num_features": config.embed_dim,
        "global_pool": config.global_pool,
        "model_args": source.model_args,
        "pretrained_cfg": source.pretrained_cfg,
        "quantization_config": checkpoint.quantization_config(config, scheme, recipe.scheme),
    }


def _run_json(
    origin: dict[str, Any], recipe: Recipe, digest: str, seconds: dict[str, float]
) -> dict[str, Any]:
    packages = ("torch", "timm", "safetensors", "numpy")
    versions = {"qvit": __version__, "python": platform.python_version()}
    return {
        "source": origin,
        "seed": recipe.seed,
        "budget": recipe.budget,
        "sha256": {checkpoint.WEIGHTS: digest},
        "versions": versions | {p: version(p) for p in packages},
        "machine": {"system": platform.platform(), "cpus": os.cpu_count()},
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "images_read": 0,
    }


def _card(source: Source, origin: dict[str, Any], recipe: Recipe, size: int, ratio: float) -> str:
    return model_card(
        source=origin,
        scheme=recipe.scheme,
        recipe=recipe,
        version=__version__,
        license=source.license,
        non_commercial=source.non_commercial,
        input_size=source.pretrained_cfg.get("input_size", ()),
        bytes=size,
        ratio=ratio,
    )
