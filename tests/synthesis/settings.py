"""Small runs on the trained model in the package."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from qvit import synthesis, zoo
from qvit.models.networks import Network
from qvit.models.resnet import ResNet, read_resnet
from qvit.models.timm_import import read_model
from qvit.models.vit import ViT
from qvit.recipe import Synthesis
from qvit.recipe.synthesis import OPTIMISED
from qvit.synthesis.objective import Batch
from qvit.zoo import Source


def demo() -> Source:
    """The trained ViT of 64 x 64 images that the package carries."""
    return zoo.resolve("demo_vit")


@cache
def teacher() -> ViT:
    """Its float model, shared by the tests, which leave it as it is."""
    return read_model(zoo.load(demo()), demo().pretrained_cfg)


@cache
def convolutional() -> ResNet:
    """The trained ResNet of the package, shared in the same way."""
    source = zoo.resolve("demo_resnet")
    return read_resnet(zoo.load(source), source.pretrained_cfg)


def small(method: str, **changes: Any) -> Synthesis:
    """A method with few images and few steps."""
    steps = {"iterations": 4} if method in OPTIMISED else {}
    return Synthesis.preset(method, **{"images": 5, "batch": 2, **steps, **changes})


def batch_of(
    settings: Synthesis, count: int = 2, seed: int = 0, network: Network | None = None
) -> Batch:
    """One batch of it, with a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    return Batch(count, (network or teacher()).config, settings, generator)


def work(out: Path, settings: Synthesis, seed: int) -> None:
    """A whole run in a process of its own."""
    synthesis.synthesize(demo(), settings, out, seed=seed, progress=False)
