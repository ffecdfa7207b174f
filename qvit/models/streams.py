"""The residual stream of many images, carried from block to block in passes that fit in memory."""

import torch
from torch import Tensor

from qvit.models.execution import Execution
from qvit.models.vit import ViT

# Images in a pass: ViT-B keeps 40 MB of a block's intermediate values for one.
BATCH = 16


@torch.no_grad()
def begin_stream(vit: ViT, images: Tensor, run: Execution) -> Tensor:
    """What the first block reads: [N, T, D], on the model's device. images: normalised [N, C, H, W]."""
    device = vit.patch_embed.gain.device
    return torch.cat([vit.begin(some.float().to(device), run) for some in images.split(BATCH)])


@torch.no_grad()
def pass_stream(block: torch.nn.Module, stream: Tensor, run: Execution) -> Tensor:
    """What a block hands on, [N, T, D], of what it reads."""
    return torch.cat([block(some, run) for some in stream.split(BATCH)])
