"""Bytes of model.safetensors of an allocation, to the byte, in milliseconds: a search asks hundreds of times."""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from qvit.deployment import storage
from qvit.models.config import ViTConfig
from qvit.models.dense import IntegerDense
from qvit.models.plan import plan_linear, plan_scheme
from qvit.models.vit import ViT
from qvit.search.allocation import Space


def file_sizes(config: ViTConfig, space: Space) -> Callable[[Tensor | Sequence[int]], int]:
    """Allocations of a space to bytes of the file.

    What a Linear stores depends on its own bits alone, and is found once for each; where it lies in the file, and with
    how many digits the header says so, depends on all.
    """
    linears = config.linears()
    with torch.device("meta"):
        usual = storage.layout(ViT(config, plan_scheme(config, space.recipe), IntegerDense))
    settled = {c.layer for c in space.choices if c.kind == "W"}
    rest = {key: entry for key, entry in usual.items() if key.rpartition(".")[0] not in settled}
    places: dict[str, list[int]] = {}
    for place, choice in enumerate(space.choices):
        if choice.kind == "W":
            places.setdefault(choice.layer, []).append(place)

    @functools.cache
    def stored(name: str, widths: tuple[int, ...]) -> storage.Layout:
        bits = space.uniform(max(widths))
        bits[places[name]] = torch.tensor(widths)
        scheme = plan_linear(config, space.recipe_of(bits), name)
        with torch.device("meta"):
            dense = nn.ModuleDict({_PART: IntegerDense(*linears[name], scheme)})
        found = storage.layout(dense)
        return {f"{name}{key.removeprefix(_PART)}": entry for key, entry in found.items()}

    @functools.cache
    def size(widths: tuple[int, ...]) -> int:
        tensors = dict(rest)
        for name, own in places.items():
            tensors |= stored(name, tuple(widths[place] for place in own))
        return storage.layout_bytes(tensors)

    return lambda bits: size(tuple(map(int, bits)))


_PART = "part"
