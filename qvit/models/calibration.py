"""Weight ranges of a folded model: the last step before it is simulated. It needs no data.

The one activation range that is not dynamic, that of the pixels, is known: 8 bits.
"""

import torch
from torch import Tensor

from qvit.models.dense import Dense
from qvit.models.folding import per_column
from qvit.models.vit import PatchEmbed, ViT
from qvit.quant.ranges import weight_grid


@torch.no_grad()
def set_weight_ranges(folded: ViT, method: str = "mse") -> ViT:
    """Choose the step of every weight ("mse" or "minmax"), in place; returns the model."""
    for module in folded.modules():
        if isinstance(module, Dense):
            assert module.scheme is not None
            module.take_grid(weight_grid(module.weight, module.scheme.weight, method))
    center_pixels(folded.patch_embed)
    return folded


@torch.no_grad()
def center_pixels(embed: PatchEmbed) -> None:
    """Take the pixel offset through the quantized weight, so that an image of the mean colour keeps its value.

    In place, once: the bias is that of the float weight before.
    """
    embed.proj.bias.add_(pixel_shift(embed, embed.proj.quantized_weight().values()))


def pixel_shift(embed: PatchEmbed, quantized: Tensor) -> Tensor:
    """What a bias [N] lacks where the offset of the pixels goes through the quantized weight [N, K], and not the float
    one.
    """
    return ((embed.proj.weight - quantized) * per_column(embed.offset, embed)).sum(1)
