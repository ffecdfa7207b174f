"""Gaussian noise: where every method starts, and what each has to be better than."""

import torch
from torch import Tensor

from qvit.models.networks import NetworkConfig
from qvit.synthesis.objective import Batch


def draw_noise(batch: Batch) -> Tensor:
    """Standard normal numbers in the model's normalised space, not cut to what pixels can be: fp32 [B, C, H, W]."""
    shape = (batch.count, batch.config.in_chans, *batch.config.image_size)
    return torch.randn(shape, generator=batch.generator)


def pixel_bounds(config: NetworkConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Normalised values of black and white, [C, 1, 1] each: (0 - mean) / std and (1 - mean) / std."""
    mean = torch.tensor(config.mean, device=device).view(-1, 1, 1)
    std = torch.tensor(config.std, device=device).view(-1, 1, 1)
    return -mean / std, (1 - mean) / std
