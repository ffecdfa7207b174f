"""ACQ (Pattern Recognition 2024, arXiv 2301.07266), our reconstruction: a generator that is told where to look.

Images of one class that a plain generator makes all show the same thing in the same place. This one is conditioned on
a class and on the centre of attention, is rewarded for images whose attention is centred there, and for different
images under one condition. The paper's formulas are not public: terms and weights are ours, and GDFQ's where it says
that it builds on them. A ViT has no BatchNorm, so there the similarity of heads (MimiQ) takes the place of its
statistics, and the consistency of modes says nothing and is left out.

With `condition` "label" this is GDFQ's generator, with "none" an unconditional one whose images are led to whatever
class the teacher sees in them, as in DAFL (Chen et al., ICCV 2019): the controls.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from qvit.models.networks import Network
from qvit.models.resnet import ResNet
from qvit.recipe import Synthesis
from qvit.synthesis.centres import (
    attention_map,
    centre_distance,
    embed,
    mode_distance,
    pair_shortfall,
)
from qvit.synthesis.generator import Condition, ImageGenerator, draw_condition
from qvit.synthesis.loop import look
from qvit.synthesis.losses import class_distance, inter_head_distance_of, total_variation
from qvit.synthesis.objective import Outcome, View
from qvit.synthesis.statistics import batch_statistics, statistics_distance


@dataclass(frozen=True, slots=True)
class Draw:
    """Random numbers of a batch: one condition an image, and the latents of the two images made under it."""

    condition: Condition
    first: Tensor
    second: Tensor


def draw_pairs(network: Network, settings: Synthesis, count: int, generator: Generator) -> Draw:
    """Latents fp32 [count, latent] from a normal distribution, and a condition for each."""
    device = next(network.parameters()).device
    condition = draw_condition(count, network.config, generator, device)
    latents = torch.randn((2, count, settings.latent), generator=generator).to(device)
    return Draw(condition, latents[0], latents[1])


def generator_terms(
    network: Network, maker: ImageGenerator, draw: Draw, settings: Synthesis
) -> dict[str, Tensor]:
    """What the generator is trained to make small, named as its weights in Synthesis; those with weight 0 left out.

    Both images of each pair count in every term.
    """
    condition = draw.condition
    twice = Condition(condition.labels.repeat(2), condition.centres.repeat(2, 1))
    images = maker(torch.cat([draw.first, draw.second]), twice)
    view = View(images, None)
    outcome = look(network, view, None, settings.precision)
    found = _network_terms(network, outcome, settings)
    if settings.classes:
        wanted = twice.labels if maker.told_label else outcome.logits.detach().argmax(-1)
        found["classes"] = class_distance(outcome.logits, wanted, settings.class_floor)
    if settings.smoothness:
        found["smoothness"] = total_variation(images)
    maps = attention_map(outcome, network.config)
    if settings.centres and maker.told_centre:
        found["centres"] = centre_distance(maps, twice.centres)
    if settings.pairs and settings.condition != "none":
        first, second = embed(outcome).chunk(2)
        latents = draw.first, draw.second
        found["pairs"] = pair_shortfall(first, second, latents, settings.pair_margin)
    if settings.consistency and settings.condition == "centre" and isinstance(network, ResNet):
        with batch_statistics(network):
            own = look(network, view, None, settings.precision)
        found["consistency"] = mode_distance(maps, attention_map(own, network.config))
    return found


def _network_terms(network: Network, outcome: Outcome, settings: Synthesis) -> dict[str, Tensor]:
    """What makes images look like data to this kind of network."""
    if isinstance(network, ResNet):
        if not settings.statistics:
            return {}
        return {"statistics": statistics_distance(outcome.statistics)}
    if not settings.attention:
        return {}
    distances = [inter_head_distance_of(record) for record in outcome.records]
    return {"attention": torch.stack(distances).mean()}


@torch.no_grad()
def draw_images(
    network: Network, maker: ImageGenerator, settings: Synthesis, count: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Images fp32 [count, C, H, W] of a trained generator in eval mode, and the classes they were made for, int64.

    An unconditional generator was told no class; its images have the one that the teacher sees.
    """
    draw = draw_pairs(network, settings, count, generator)
    images = maker(draw.first, draw.condition)
    if maker.told_label or not network.config.num_classes:
        return images, draw.condition.labels
    return images, look(network, View(images, None), None, settings.precision).logits.argmax(-1)
