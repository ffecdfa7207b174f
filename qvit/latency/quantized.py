"""The folder itself as a variant: one a backend."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from qvit.deployment import QuantViT
from qvit.deployment.checkpoint import WEIGHTS
from qvit.latency.floats import Runner
from qvit.models.dense import IntegerDense


@dataclass(frozen=True, slots=True)
class Quantized:
    """A loaded folder on one backend, warmed up."""

    name: str
    model: QuantViT
    runner: Runner

    @property
    def storage_bits(self) -> float:
        """Bits that a weight of its Linears takes where it is kept, the mean over all of them."""
        return stored_bits(self.model.vit)

    @property
    def compute_dtype(self) -> str:
        """What its matrix products are made in, "int8" or "float"; both where layers differ."""
        found = {layer.route.computes_in for layer in self.model.explain().layers}
        return "/".join(sorted(filter(None, found)))


def open_folder(folder: Path, backend: str, device: str, batches: Sequence[int]) -> Quantized:
    """Load a folder and warm it up for these batch sizes."""
    model = QuantViT.from_pretrained(folder, device=device, backend=backend)
    model.warmup(batches)
    runner = Runner(
        prepare=lambda images: images,
        run=model,
        logits=lambda out: out.float().cpu(),
        weight_bytes=(folder / WEIGHTS).stat().st_size,
        model=model,
    )
    scheme = model.scheme.lower().replace(" ", "-")
    return Quantized(f"qvit-{scheme}-{backend}", model, runner)


def stored_bits(model: nn.Module) -> float:
    """Mean over the weights of all Linears in integers, multipliers of groups included; 8 without any."""
    bits, weights = 0, 0
    for module in model.modules():
        if isinstance(module, IntegerDense):
            stored = module.stored
            weights += stored.scale.numel() * module.in_features
            bits += 8 * stored.codes.numel() * stored.codes.element_size()
            bits += 8 * (0 if stored.multiplier is None else stored.multiplier.numel())
    return round(bits / weights, 2) if weights else math.nan
