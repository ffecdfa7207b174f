"""What a float ViT makes of images, layer by layer: a pass that is listened to."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qvit.models.dense import Dense
from qvit.models.floating import Float
from qvit.models.vit import Attention, Mlp, ViT


class Looking(Float):
    """A float pass that hands what each Linear of a block is given to `hear`, and keeps numbers on attention."""

    def __init__(self, vit: ViT, hear: Callable[[Dense, Tensor], None]) -> None:
        self._head, self._hear = vit.head, hear
        self.entropies: list[float] = []
        self.shares: list[float] = []
        self.streams: list[Tensor] = []

    def norm(self, x: Tensor, norm: nn.LayerNorm, to: Dense) -> Tensor:
        """See Float."""
        found = super().norm(x, norm, to)
        return found if to is self._head else self._heard(found, to)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, attn: Attention) -> Tensor:
        """See Float."""
        weights = (q @ k.transpose(-1, -2) * attn.softmax_scale).softmax(-1)
        self.entropies.append(entropy(weights))
        self.shares.append(class_share(weights))
        return self._heard(super().attention(q, k, v, attn), attn.proj)

    def gelu(self, h: Tensor, mlp: Mlp) -> Tensor:
        """See Float."""
        return self._heard(super().gelu(h, mlp), mlp.fc2)

    def residual(self, x: Tensor, h: Tensor, dense: Dense) -> Tensor:
        """See Float."""
        self.streams.append(super().residual(x, h, dense))
        return self.streams[-1]

    def _heard(self, x: Tensor, to: Dense) -> Tensor:
        self._hear(to, x)
        return x


def entropy(weights: Tensor) -> float:
    """Mean entropy in nats of attention weights [..., T, T], a distribution a row."""
    return float(-weights.xlogy(weights).sum(-1).mean())


def class_share(weights: Tensor) -> float:
    """Mean share of the class token, which is the first, in the attention of all others."""
    return float(weights[..., 1:, 0].mean())


@torch.no_grad()
def look(vit: ViT, images: Tensor) -> dict[str, list[float]]:
    """Numbers of a float ViT's pass over images [N, C, H, W]: of each Linear of the blocks the mean over tokens of the
    largest magnitude of what it is given ("range"), and by block the mean norms of patch tokens and of the class token,
    the entropy of attention in nats, and the share of patches' attention that the class token has.
    """
    ranges: list[float] = []
    run = Looking(vit, lambda _, x: ranges.append(float(x.abs().amax(-1).mean())))
    vit(images, run)
    norms = [stream.norm(dim=-1) for stream in run.streams[1::2]]  # a block adds twice
    return {
        "range": ranges,
        "patch_norm": [float(norm[:, 1:].mean()) for norm in norms],
        "class_norm": [float(norm[:, 0].mean()) for norm in norms],
        "attention_entropy": run.entropies,
        "class_share": run.shares,
    }


@torch.no_grad()
def find_moments(vit: ViT, images: Tensor) -> dict[Dense, Tensor]:
    """Second moments of what each Linear of the blocks is given, fp64 [K, K], a mean over tokens."""
    found: dict[Dense, Tensor] = {}

    def hear(to: Dense, x: Tensor) -> None:
        rows = x.flatten(0, -2)
        found[to] = (rows.T @ rows).double() / len(rows)

    vit(images, Looking(vit, hear))
    return found


def output_error(change: Tensor, moments: Tensor) -> float:
    """Mean squared error of what a Linear puts out, for a change of its weights [N, K] and inputs of these moments."""
    change = change.double()
    return float(((change @ moments) * change).sum())
