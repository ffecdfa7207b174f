"""How like real images a batch looks to the teacher: the numbers of the table and of the report."""

from typing import Any

import torch
from torch import Tensor

from qvit.models.networks import Network
from qvit.models.resnet import ResNet
from qvit.models.vit import ViT
from qvit.synthesis.entropy import patch_similarity_entropy
from qvit.synthesis.losses import inter_head_distance, neighbour_differences
from qvit.synthesis.recording import Recording
from qvit.synthesis.statistics import record_statistics, statistics_distance

TOGETHER = 32  # images whose entropy shares its places, as published


@torch.no_grad()
def measure(network: Network, images: Tensor, together: int = TOGETHER) -> dict[str, Any]:
    """What a float teacher makes of images, in float32.

    Args:
        network: The teacher.
        images: fp32 [N, C, H, W], normalised.
        together: How many are looked at at a time. Entropy depends on it through the places of its density: only what
            was measured with as many can be compared.

    Returns:
        confidence: Mean largest probability; 0 without classes.
        total_variation: Mean root-mean-square difference of neighbours, in standard deviations of the data.
        classes: How many images of each class the teacher sees, [classes].

        Of a ViT also:

        head_distance: Inter-head term of MimiQ, mean of 1 - SSIM^2; real images have less than noise.
        patch_entropy: Mean over blocks of PSAQ-ViT's entropy in nats; real images have more than noise.
        head_distances, patch_entropies: The two measures by block, [blocks].

        Of a ResNet also:

        norm_distance: Distance to the statistics of its BatchNorms; it depends on how many images are looked at.
    """
    parts = [_look(network, part) for part in images.split(together)]
    shares = torch.tensor([len(part) / len(images) for part in images.split(together)])

    def average(name: str) -> Tensor:
        stacked = torch.stack([part[name] for part in parts])
        return (stacked * shares.view(-1, *[1] * (stacked.ndim - 1))).sum(0)

    found: dict[str, Any] = {
        "confidence": float(average("confidence")),
        "total_variation": float(average("variation")),
        "classes": torch.stack([part["classes"] for part in parts]).sum(0).tolist(),
    }
    if isinstance(network, ResNet):
        return {"norm_distance": float(average("norms")), **found}
    distances, entropies = average("distances"), average("entropies")
    return {
        "head_distance": float(distances.mean()),
        "patch_entropy": float(entropies.mean()),
        **found,
        "head_distances": distances.tolist(),
        "patch_entropies": entropies.tolist(),
    }


def summarise(found: dict[str, Any]) -> dict[str, float]:
    """The few numbers of a measurement, without its arrays."""
    names = ("head_distance", "patch_entropy", "norm_distance", "confidence", "total_variation")
    return {name: round(found[name], 6) for name in names if name in found}


def _look(network: Network, images: Tensor) -> dict[str, Tensor]:
    if isinstance(network, ResNet):
        logits, _, statistics = record_statistics(network, images)
        own = {"norms": statistics_distance(statistics)}
    else:
        logits, own = _look_at_blocks(network, images)
    classes = network.config.num_classes
    sharpness, guess = logits.softmax(-1).max(-1) if classes else _no_classes(images)
    return {
        "confidence": sharpness.mean(),
        "variation": torch.tensor(_roughness(images)),
        "classes": torch.bincount(guess, minlength=classes),
        **own,
    }


def _look_at_blocks(vit: ViT, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    run = Recording(vit.config)
    logits = vit(images, run)
    distances = [inter_head_distance(record.scores()) for record in run.records]
    entropies = [patch_similarity_entropy(record.features()) for record in run.records]
    return logits, {
        "distances": torch.stack(distances),
        "entropies": torch.stack(entropies),
    }


def _no_classes(images: Tensor) -> tuple[Tensor, Tensor]:
    return images.new_zeros(len(images)), torch.zeros(0, dtype=torch.long, device=images.device)


def _roughness(images: Tensor) -> float:
    """Root-mean-square difference of neighbours, the four directions together."""
    differences = neighbour_differences(images)
    squares = sum(float(d.square().sum()) for d in differences)
    return (squares / sum(d.numel() for d in differences)) ** 0.5
