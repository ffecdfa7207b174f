"""The launches that whole models make, found without a card: on the meta device an op of a model is a shape."""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cases.kernels import MODELS, model_config
from benchmarks.cases.kernels import SCHEMES as TIMED
from qvit import zoo
from qvit.models.config import ViTConfig
from qvit.models.dense import IntegerDense
from qvit.models.integer import Integer
from qvit.models.plan import plan_scheme
from qvit.models.timm_import import read_config
from qvit.models.vit import ViT
from qvit.recipe import Recipe
from qvit_kernels import tiles
from qvit_kernels.fused_plans import plan_of
from qvit_kernels.launching import Launch

BATCHES = (1, 64)
# Up to 3 bits the default recipe has groups of weights as at 4, and other groups of activations where those have fewer
# than 8 bits.
SCHEMES = TIMED | {"W3A8": (3, 8), "W3A3": (3, 3), "W2A4": (2, 4), "W2A2": (2, 2)}
# The model in the package.
DEMO = "demo_vit"


class _Recorder(TorchDispatchMode):
    """Keeps the `qvit` ops that ran, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "qvit":
            self.calls.append((func._opname, args))
        return func(*args, **(kwargs or {}))


def config_of(model: str) -> ViTConfig:
    """One block of a model."""
    if model in MODELS:
        return model_config(model, depth=1)
    source = zoo.resolve(model)
    return replace(read_config(zoo.load(source), source.pretrained_cfg), depth=1)


@lru_cache(maxsize=64)
def calls_of(model: str, scheme: str, batch: int) -> list[tuple[str, tuple[Any, ...]]]:
    """The ops of a model with one block, by the default recipe of a scheme, with arguments on the meta device."""
    config = config_of(model)
    weight_bits, activation_bits = SCHEMES[scheme]
    recipe = Recipe.preset("qvit", weight_bits=weight_bits, activation_bits=activation_bits)
    with torch.device("meta"), torch.no_grad():
        vit = ViT(config, plan_scheme(config, recipe), IntegerDense)
        images = torch.empty(batch, config.in_chans, *config.image_size)
        with _Recorder() as recorder:
            vit(images, Integer("triton"))
    return recorder.calls


@lru_cache(maxsize=1024)
def launches_of(model: str, scheme: str, batch: int, capability: int) -> dict[str, Launch]:
    """The launches of a model on a card of this capability, by op and shape, none of them run."""
    found: dict[str, Launch] = {}
    for name, arguments in calls_of(model, scheme, batch):
        with tiles.planning_for(capability):
            plan = plan_of(name, arguments)
        for i, launch in enumerate(plan.launches):
            found["-".join([name, *_shape_of(name, arguments), *(["second"] * (i > 0))])] = launch
    return found


def _shape_of(name: str, arguments: tuple[Any, ...]) -> list[str]:
    """N x K of a product; nothing for another op, of which a block has one kind."""
    if not name.startswith("linear"):
        return []
    x, w = arguments[0], arguments[2]
    return [f"{w.shape[0]}x{x.shape[-1] * (2 if x.dtype == torch.uint8 else 1)}"]


def model_launches(capability: int) -> Iterator[tuple[str, Launch]]:
    """Every launch of the models, schemes and batches here, with a name."""
    for model in (*MODELS, DEMO):
        for scheme in SCHEMES:
            for batch in BATCHES:
                for name, launch in launches_of(model, scheme, batch, capability).items():
                    yield f"{model}-b{batch}-{scheme}-{name}", launch
