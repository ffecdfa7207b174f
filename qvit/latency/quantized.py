"""The folder itself as a variant: one a backend."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qvit.deployment import QuantViT, storage
from qvit.kept import name_own
from qvit.latency.floats import Runner
from qvit.models.vit import ViT

GRAPH = "cudagraph"  # a mode: the whole pass as one recorded graph


@dataclass(frozen=True, slots=True)
class Quantized:
    """A loaded folder on one backend, warmed up. remarks: sentences about what it goes without."""

    name: str
    model: QuantViT
    runner: Runner
    remarks: tuple[str, ...] = ()

    @property
    def storage_bits(self) -> float:
        """Bits that a weight of its Linears takes where it is kept, the mean over all of them."""
        return stored_bits(self.model.vit)

    @property
    def compute_dtype(self) -> str:
        """What its matrix products are made in, "int8" or "float"; both where layers differ."""
        found = {layer.route.computes_in for layer in self.model.explain().layers}
        return "/".join(sorted(filter(None, found)))

    @property
    def mode(self) -> str:
        """How a pass is handed out: "cudagraph", "program" (one call of the compiled CPU path), or "eager"."""
        if self.model.device.type == "cuda":
            return GRAPH if self.model.records_graphs else "eager"
        return "program" if self.model.explain().one_program else "eager"


def open_folder(folder: Path, backend: str, device: str, batches: Sequence[int]) -> Quantized:
    """Load a folder and warm it up for these batch sizes."""
    model = QuantViT.from_pretrained(folder, device=device, backend=backend)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        model.warmup(batches)
    remarks = [each for each in caught if issubclass(each.category, RuntimeWarning)]
    for other in caught:
        if other not in remarks:
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    runner = Runner(
        prepare=lambda images: images,
        run=model,
        logits=lambda out: out.float().cpu(),
        weight_bytes=(folder / storage.WEIGHTS).stat().st_size,
        model=model,
    )
    name = name_own(model.scheme, backend)
    return Quantized(name, model, runner, tuple(f"{name}: {each.message}" for each in remarks))


def stored_bits(vit: ViT) -> float:
    """Mean over the weights of all Linears as the file holds them, multipliers of groups included."""
    held = 0
    for name, (shape, dtype) in storage.layout(vit).items():
        if name.endswith("_packed"):
            held += 8 * math.prod(shape) * dtype.itemsize
    return round(held / sum(math.prod(shape) for shape in vit.config.linears().values()), 2)
