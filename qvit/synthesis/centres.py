"""Where a network looks: its attention as a map, the centre of it, and what ACQ asks of both.

ACQ (Pattern Recognition 2024, arXiv 2301.07266) publishes what its terms are about and not their formulas. All of
these are our reconstruction.
"""

import torch
from torch import Tensor

from qvit.models.config import ViTConfig
from qvit.models.networks import NetworkConfig
from qvit.synthesis.generator import place_grid
from qvit.synthesis.objective import Outcome

_LAST_BLOCKS = 3  # of a ViT, whose attention is averaged
_FEWEST_PLACES = 4  # rows and columns below which a map has no centre worth the name


def attention_map(outcome: Outcome, config: NetworkConfig) -> Tensor:
    """How much of the network's attention every place has.

    A ViT's is that of the class token to the patches, averaged over heads and the last 3 blocks. A ResNet's is the
    squared output of its last stage with at least 4 x 4 places, averaged over channels.

    Returns:
        fp32 [V, rows, columns], not negative; each map sums to 1.
    """
    if isinstance(config, ViTConfig):
        blocks = [r.attention_to_patches().mean(1) for r in outcome.records[-_LAST_BLOCKS:]]
        rows, columns = (i // p for i, p in zip(config.image_size, config.patch_size, strict=True))
        found = torch.stack(blocks).mean(0).unflatten(-1, (rows, columns))
    else:
        wide = [f for f in outcome.features if min(f.shape[-2:]) >= _FEWEST_PLACES]
        found = (wide or outcome.features)[-1].float().square().mean(1)
    return found / (found.sum((-2, -1), keepdim=True) + 1e-12)


def attention_centres(maps: Tensor) -> Tensor:
    """The mean place under each map: sum over places p of M_p position_p, differentiable.

    Args:
        maps: [V, rows, columns]; each sums to 1.

    Returns:
        [V, 2], row and column from 0 to 1.
    """
    rows, columns = place_grid(maps.shape[-2], maps.shape[-1], maps.device)
    return torch.stack([(maps * rows).sum((-2, -1)), (maps * columns).sum((-2, -1))], -1)


def centre_distance(maps: Tensor, centres: Tensor) -> Tensor:
    """Mean over images of || centre(M) - c ||^2 (ACQ, attention-centre matching): maps [V, rows, columns], c [V, 2]."""
    return (attention_centres(maps) - centres).square().sum(-1).mean()


def pair_shortfall(
    first: Tensor, second: Tensor, latents: tuple[Tensor, Tensor], margin: float
) -> Tensor:
    """How much two images of one condition lack of being different (ACQ, adversarial loss of pairs).

        r = (mean |f1 - f2| / u) / mean |z1 - z2|      u = mean (|f1| + |f2|) / 2, not differentiated
        result = mean over pairs of max(0, margin - r)

    The form that seeks modes (Mao et al., CVPR 2019): a generator that ignores its latents has r = 0. Beyond the
    margin nothing is gained, or features would grow without end.

    Args:
        first: Features of one image of every pair, [B, D].
        second: Of the other.
        latents: What they were made from, [B, L] each.
        margin: 1 asks for features that differ as much as they are large, for latents one apart.
    """
    unit = (first.abs() + second.abs()).mean(-1).detach() / 2
    apart = (first - second).abs().mean(-1) / (unit + 1e-12)
    ratio = apart / ((latents[0] - latents[1]).abs().mean(-1) + 1e-5)
    return (margin - ratio).clamp_min(0).mean()


def mode_distance(learned: Tensor, own: Tensor) -> Tensor:
    """Mean over images of || M - M' ||^2 (ACQ, consistency): attention under what BatchNorm learned, and under the
    statistics of the batch itself, [V, rows, columns] each.
    """
    return (learned - own).square().sum((-2, -1)).mean()


def embed(outcome: Outcome) -> Tensor:
    """One vector an image, before the classifier: mean over tokens or places of the last features, fp32 [V, D]."""
    last = outcome.features[-1].float()
    return last.mean(1) if last.dim() == 3 else last.mean((-2, -1))
