"""Seconds of the layers of a model on the machine at hand: measured once for a shape and its bits, and kept.

Of several passes the fastest counts, so that a busy moment does not; the weights are random, which no kernel's time
shows.
"""

import json
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import torch

from qvit import machine
from qvit.deployment.checkpoint import write_json
from qvit.deployment.placement import name_backend
from qvit.deployment.quantvit import QuantViT
from qvit.models.config import ViTConfig
from qvit.models.dense import IntegerDense
from qvit.models.vit import ViT
from qvit.quant.schemes import ModelScheme

_FEWEST, _MOST, _SECONDS = 3, 30, 1.0  # passes, and how long there shall be more of them


class UnmeasuredError(Exception):
    """What was to be known without a measurement is not."""


def measure_seconds(
    config: ViTConfig,
    scheme: ModelScheme,
    batch: int,
    folder: Path | None = None,
    *,
    measures: bool = True,
) -> dict[str, float]:
    """Seconds of every layer of a pass over `batch` images, on a GPU if there is one.

    folder: Where they are kept by this machine's name (None: the user's cache). Layers of one shape, bits and scales
    share an entry of a backend, the mean of their times; a model whose layers are all known is not run. measures:
    Whether others are; UnmeasuredError where they are not to be.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    place = folder or machine.cache_folder()
    path = None if place is None else place / f"latency-{machine.name_device(device)}.json"
    known = _read(path)
    ending = f"residual {scheme.residual} batch {batch} {name_backend(device)}"
    keys = {name: f"{key} {ending}" for name, key in _keys(config, scheme).items()}
    if not known.keys() >= set(keys.values()):
        if not measures:
            raise UnmeasuredError
        times: dict[str, list[float]] = defaultdict(list)
        for name, seconds in _time_layers(config, scheme, batch, device).items():
            if name in keys:
                times[keys[name]].append(seconds)
        # what no clock sees (behind the last block, where the compiled path's may end) is in every allocation alike
        known |= {key: fmean(times[key]) if key in times else 0.0 for key in keys.values()}
        _keep(path, known)
    return {name: known[key] for name, key in keys.items()}


def _keys(config: ViTConfig, scheme: ModelScheme) -> dict[str, str]:
    """What the time of a layer depends on, of every layer and norm that takes some."""
    tokens = config.num_prefix_tokens + config.num_patches
    shapes = config.linears()
    keys = {}
    for name, linear in scheme.linears.items():
        n, k = shapes[name]
        kind = name.rpartition(".")[2]
        weight, rows = linear.weight, linear.input
        grid = f"w{weight.bits}/{weight.group} a{rows.bits}/{rows.group} prefix {rows.prefix}"
        keys[name] = f"{kind} {tokens}x{n}x{k} {grid} hadamard {linear.transform}"
        before = {"qkv": "norm1", "fc1": "norm2", "head": "norm"}.get(kind)
        if before is not None:
            block = name.split(".")[:2] if "." in name else []
            keys[".".join([*block, before])] = f"norm before {keys[name]}"
    for name, attention in scheme.attentions.items():
        grid = f"a{attention.qkv.bits} softmax {attention.softmax_bits} norm {config.qk_norm}"
        keys[name] = f"attention {tokens}x{config.num_heads}x{config.head_dim} {grid}"
    return keys


def _time_layers(
    config: ViTConfig, scheme: ModelScheme, batch: int, device: str
) -> Mapping[str, float]:
    model = QuantViT(_random_vit(config, scheme).to(device), {})
    images = torch.rand(batch, config.in_chans, *config.image_size, device=device)
    model.warmup((batch,))
    best = model.time_layers(images)
    begun = time.perf_counter()
    for count in range(_MOST):
        if count >= _FEWEST and time.perf_counter() - begun > _SECONDS:
            break
        found = model.time_layers(images)
        best = {name: min(seconds, found[name]) for name, seconds in best.items()}
    return best


def _random_vit(config: ViTConfig, scheme: ModelScheme) -> ViT:
    generator = torch.Generator().manual_seed(0)
    vit = ViT(config, scheme, IntegerDense)
    for tensor in [*vit.parameters(), *vit.buffers()]:
        if tensor.dtype.is_floating_point:
            tensor.data.uniform_(0.01, 0.02, generator=generator)
        else:
            tensor.data.random_(1, 8, generator=generator)
    return vit.eval().requires_grad_(False)


def _read(path: Path | None) -> dict[str, float]:
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
        return {str(key): float(seconds) for key, seconds in values.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # none yet, or not ours to read


def _keep(path: Path | None, known: Mapping[str, float]) -> None:
    if path is None:
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(path, dict(sorted(known.items())))
    except OSError:
        pass  # measured again the next time
