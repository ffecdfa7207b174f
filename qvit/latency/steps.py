"""Where the time of a pass goes: every layer of the quantized model beside what it cannot take less than."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qvit.deployment.explanation import Layer
from qvit.deployment.layer_names import shorten, without_block
from qvit.latency.quantized import Quantized
from qvit.latency.rates import Rates

_SECONDS = 2.0  # of passes a batch size
_PASSES = (5, 30)  # at least, at most
_ALIKE = (
    "kind",
    "kernel",
    "bits",
    "input_bits",
    "computes_in",
    "bound",
)  # of layers that are summed


def time_steps(
    own: Quantized, images: Tensor, rates: Rates, say: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """One entry a layer, in order.

    `variant`, `batch`, `name` ("blocks.0.mlp.fc1"), `kind` (the operation), `ms` (median of several passes),
    `fastest_ms`, `share` of the layers' time, `pass_ms` (a whole pass, timed in turns with those of the layers),
    `kernel`, `bits` of its weights and `input_bits`, `computes_in`, `bytes`, `operations`, `floor_ms` and what it is
    the floor of (`bound`), `fallback_reason`. What comes behind the last block has no time where the compiled path's
    clock ends there.
    """
    say(f"layers of {own.name}, batch {len(images)}")
    passes, wholes = _time_passes(own, images)
    merged: dict[str, list[Layer]] = defaultdict(list)
    for layer in own.model.explain(len(images)).layers:
        merged[layer.name].append(layer)
    entries = [
        _describe(name, layers, [p[name] for p in passes if name in p], rates)
        for name, layers in merged.items()
    ]
    whole = sum(entry["ms"] or 0.0 for entry in entries)
    for entry in entries:
        entry["share"] = None if entry["ms"] is None else entry["ms"] / whole
        entry["pass_ms"] = 1000 * statistics.median(wholes)
    return [{"variant": own.name, "batch": len(images), **entry} for entry in entries]


def _time_passes(own: Quantized, images: Tensor) -> tuple[list[dict[str, float]], list[float]]:
    """Seconds of the layers, pass by pass, and of as many whole passes. They take turns: minutes after the rounds the
    machine may be another, and a share of those would say so of the layers.
    """
    own.model.time_layers(images)  # pays what first passes pay
    passes, wholes = [own.model.time_layers(images)], [_time_whole(own, images)]
    count = int(_SECONDS / max(sum(passes[0].values()), 1e-6))
    for _ in range(max(_PASSES[0], min(count, _PASSES[1])) - 1):
        passes.append(own.model.time_layers(images))
        wholes.append(_time_whole(own, images))
    return passes, wholes


def _time_whole(own: Quantized, images: Tensor) -> float:
    start = time.perf_counter()
    own.runner.run(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _describe(name: str, layers: list[Layer], seconds: list[float], rates: Rates) -> dict[str, Any]:
    """One layer of one or two operations, of which the one with weights names it."""
    main = max(layers, key=lambda layer: layer.operations)
    floors = [rates.floor(la.bytes, la.operations, la.route.computes_in) for la in layers]
    reasons = [layer.route.reason for layer in layers if layer.route.reason]
    return {
        "name": name,
        "kind": main.op,
        "ms": 1000 * statistics.median(seconds) if seconds else None,
        "fastest_ms": 1000 * min(seconds) if seconds else None,
        "share": None,
        "kernel": " + ".join(main.route.kernels) or f"torch ({main.route.backend})",
        "bits": main.weight_bits,
        "input_bits": main.input_bits,
        "computes_in": main.route.computes_in,
        "bytes": sum(layer.bytes for layer in layers),
        "operations": sum(layer.operations for layer in layers),
        "floor_ms": 1000 * sum(floor for floor, _ in floors),
        "bound": max(floors)[1],
        "fallback_reason": reasons[0] if reasons else None,
    }


def sum_by_kind(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Layers of each variant and batch, those of blocks that are alike together: `name` with a star for the block's
    number, or the numbers where other blocks differ in bits or kernel, `times`, and the sums of times, floors, bytes
    and operations.
    """
    known: dict[tuple[str, int], list[str]] = defaultdict(list)
    members: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    sums: dict[tuple[Any, ...], dict[str, Any]] = {}
    for layer in layers:
        kind = without_block(layer["name"])
        key = (layer["variant"], layer["batch"], kind, *(layer[field] for field in _ALIKE))
        known[key[:2]].append(layer["name"])
        members[key].append(layer["name"])
        if key not in sums:
            sums[key] = {**layer, "times": 1}
            continue
        into = sums[key]
        into["times"] += 1
        for field in ("bytes", "operations", "floor_ms"):
            into[field] += layer[field]
        for field in ("ms", "fastest_ms", "share"):
            both = into[field] is not None and layer[field] is not None
            into[field] = into[field] + layer[field] if both else None
        into["fallback_reason"] = into["fallback_reason"] or layer["fallback_reason"]
    for key, into in sums.items():
        (into["name"],) = shorten(members[key], known[key[:2]])
    return list(sums.values())
