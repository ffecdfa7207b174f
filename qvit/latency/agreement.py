"""How often a variant's first answer is the float model's, on pictures that nobody took."""

import torch
from torch import Tensor

from qvit.latency.floats import Runner
from qvit.models.timm_import import read_shape
from qvit.synthesis.leaves import draw_pictures
from qvit.synthesis.seeds import generator_for
from qvit.zoo import Source


def draw_for(source: Source, count: int) -> Tensor:
    """Dead leaves, normalised for the model: fp32 [count, C, H, W]."""
    return draw_pictures(read_shape(source), count, generator_for(0, "bench", 0))


def answer(runner: Runner, images: Tensor, batch: int, device: str) -> Tensor:
    """The class with the highest logit of each image, int64 [N], asked in batches of the size that it is made for: the
    last image fills up the last one.
    """
    found = []
    for part in images.split(batch):
        filling = part[-1:].expand(batch - len(part), *part.shape[1:])
        full = torch.cat([part, filling]).to(device)
        found.append(runner.logits(runner.run(runner.prepare(full))).argmax(-1)[: len(part)])
    return torch.cat(found)


def find_agreement(first: Tensor, second: Tensor) -> float:
    """Percent of images with the same answer, of as many each."""
    return 100.0 * float((first == second).double().mean())
