"""Sparse inversion (SMI, Hu et al., ICML 2024): patches that the model does not look at are dropped while optimising.

Fewer tokens make every later step cheaper. A modifier of any optimising method: at steps s, 2s, 4s, 6s, ... of the run
(s = sparse_start of the iterations; published 50, 100, 200, 300 of 4000) the share `sparse` of the patches that are
left is dropped, those with the least attention in the last block. What lies in a dropped patch was never finished, so
it is stored as the mean colour (the authors store black, which a model sees as content).
"""

import torch
from torch import Tensor

from qvit.models.config import ViTConfig
from qvit.recipe import Synthesis
from qvit.synthesis.augmentation import Placement
from qvit.synthesis.recording import BlockRecord


class Patches:
    """Which patches of a batch are still there.

    Attributes:
        left: bool [B, rows, columns]; as many in every image.
    """

    def __init__(
        self, count: int, config: ViTConfig, settings: Synthesis, device: torch.device
    ) -> None:
        self.patch = config.patch_size
        self.share = settings.sparse
        grid = tuple(i // p for i, p in zip(config.image_size, config.patch_size, strict=True))
        self.left = torch.ones(count, *grid, dtype=torch.bool, device=device)
        start = max(1, round(settings.sparse_start * settings.iterations))
        self.steps = (
            set(drop_steps(start, settings.sparse_times)) if settings.sparse else set[int]()
        )

    @property
    def complete(self) -> bool:
        """Whether none was dropped yet."""
        return bool(self.left.all())

    def chosen(self, placement: Placement | None) -> Tensor | None:
        """Numbers of the patches that are left, after the image was moved: int64 [B, K]; None for all of them."""
        if placement is None or self.complete:
            return None
        moved = placement.apply_to_patches(self.left, self.patch).flatten(1)
        return moved.nonzero()[:, 1].view(len(moved), -1)

    def drop(self, last: BlockRecord) -> None:
        """Drop the patches that the last block attends to least, seen on images in their place."""
        attention = last.attention_to_patches().mean(1)  # [B, K], of the patches that are left
        keep = max(1, attention.shape[1] - round(self.share * attention.shape[1]))
        kept = attention.topk(keep, dim=1).indices
        flags = torch.zeros_like(attention, dtype=torch.bool).scatter_(1, kept, value=True)
        self.left[self.left.clone()] = flags.flatten()

    def blank(self, pixels: Tensor, fill: Tensor) -> Tensor:
        """pixels [B, C, H, W] with `fill` [C, 1, 1] where patches were dropped."""
        rows, columns = self.patch
        shown = self.left.repeat_interleave(rows, 1).repeat_interleave(columns, 2)
        whole = torch.ones_like(pixels[:, 0], dtype=torch.bool)  # pixels beyond the last patch stay
        whole[:, : shown.shape[1], : shown.shape[2]] = shown
        return torch.where(whole.unsqueeze(1), pixels, fill)


def drop_steps(start: int, times: int) -> list[int]:
    """start, 2 start, 4 start, 6 start, 8 start, ...: the published sequence, continued."""
    return [start * (1 if i == 0 else 2 * i) for i in range(times)]
