"""How often a variant's first answer is the float model's, on pictures that nobody took."""

import torch
from torch import Tensor

from qvit import zoo
from qvit.latency.floats import Runner
from qvit.models.timm_import import read_config
from qvit.synthesis.leaves import draw_pictures
from qvit.zoo import Source


def draw_for(source: Source, count: int) -> Tensor:
    """Dead leaves, normalised for the model: fp32 [count, C, H, W]."""
    with torch.device("meta"):
        config = read_config(zoo.build(source), source.pretrained_cfg)
    return draw_pictures(config, count, "bench")


def answer(runner: Runner, images: Tensor, batch: int, device: str) -> Tensor:
    """The class with the highest logit of each image, int64 [N], asked in batches of the size that it is made for."""
    found = []
    for start in range(0, len(images) - batch + 1, batch):
        part = images[start : start + batch].to(device)
        found.append(runner.logits(runner.run(runner.prepare(part))).argmax(-1))
    return torch.cat(found)


def find_agreement(first: Tensor, second: Tensor) -> float | None:
    """Percent of images with the same answer; None where nothing was asked."""
    count = min(len(first), len(second))
    return None if not count else 100.0 * int((first[:count] == second[:count]).sum()) / count
