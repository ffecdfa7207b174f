"""How like real images a batch looks to the teacher: the numbers of the table and of the report."""

from typing import Any

import torch
from torch import Tensor

from qvit.models.vit import ViT
from qvit.synthesis.entropy import patch_similarity_entropy
from qvit.synthesis.losses import (
    inter_head_distance,
    inter_head_ssim,
    neighbour_differences,
)
from qvit.synthesis.recording import RecordingRanges

# Entropy depends on the batch through the places of its density: always so many images at a time, as published.
_TOGETHER = 32


@torch.no_grad()
def measure(vit: ViT, images: Tensor) -> dict[str, Any]:
    """What a float teacher makes of images, in float32.

    Args:
        vit: The teacher.
        images: fp32 [N, C, H, W], normalised. They are looked at 32 at a time.

    Returns:
        head_distance: Inter-head term of MimiQ, mean of 1 - SSIM^2; real images have less than noise.
        patch_entropy: Mean over blocks of PSAQ-ViT's entropy in nats; real images have more than noise.
        confidence: Mean largest probability; 0 without classes.
        total_variation: Mean root-mean-square difference of neighbours, in standard deviations of the data.
        classes: How many images of each class the teacher sees, [classes].
        head_ssim: SSIM of every pair of heads, [blocks][heads][heads].
        head_distances, patch_entropies: The two measures by block, [blocks].
        ranges: Least and largest input of qkv, proj, fc1 and fc2, [blocks][4][2].
    """
    parts = [_look(vit, part) for part in images.split(_TOGETHER)]
    shares = torch.tensor([len(part) / len(images) for part in images.split(_TOGETHER)])

    def average(name: str) -> Tensor:
        stacked = torch.stack([part[name] for part in parts])
        return (stacked * shares.view(-1, *[1] * (stacked.ndim - 1))).sum(0)

    ranges = torch.stack([part["ranges"] for part in parts])
    span = torch.stack([ranges[..., 0].amin(0), ranges[..., 1].amax(0)], -1)
    distances, entropies = average("distances"), average("entropies")
    return {
        "head_distance": float(distances.mean()),
        "patch_entropy": float(entropies.mean()),
        "confidence": float(average("confidence")),
        "total_variation": float(average("variation")),
        "classes": torch.stack([part["classes"] for part in parts]).sum(0).tolist(),
        "head_ssim": average("ssim").tolist(),
        "head_distances": distances.tolist(),
        "patch_entropies": entropies.tolist(),
        "ranges": span.view(vit.config.depth, 4, 2).tolist(),
    }


def summarise(found: dict[str, Any]) -> dict[str, float]:
    """The four numbers of a measurement, without its arrays."""
    names = ("head_distance", "patch_entropy", "confidence", "total_variation")
    return {name: round(found[name], 6) for name in names}


def _look(vit: ViT, images: Tensor) -> dict[str, Tensor]:
    run = RecordingRanges(vit.config)
    logits = vit(images, run)
    scores = [record.scores() for record in run.records]
    entropies = [patch_similarity_entropy(record.features()) for record in run.records]
    sharpness, guess = logits.softmax(-1).max(-1) if vit.config.num_classes else _no_classes(images)
    return {
        "distances": torch.stack([inter_head_distance(s) for s in scores]),
        "ssim": torch.stack([inter_head_ssim(s) for s in scores]),
        "entropies": torch.stack(entropies),
        "confidence": sharpness.mean(),
        "variation": torch.tensor(_roughness(images)),
        "classes": torch.bincount(guess, minlength=vit.config.num_classes),
        "ranges": torch.tensor(run.ranges),
    }


def _no_classes(images: Tensor) -> tuple[Tensor, Tensor]:
    return images.new_zeros(len(images)), torch.zeros(0, dtype=torch.long, device=images.device)


def _roughness(images: Tensor) -> float:
    """Root-mean-square difference of neighbours, the four directions together."""
    differences = neighbour_differences(images)
    squares = sum(float(d.square().sum()) for d in differences)
    return (squares / sum(d.numel() for d in differences)) ** 0.5
