"""SARDFQ (Zhong et al., ICCV 2025): attention led to random maps, several regions with a class each, soft labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from qvit.synthesis.losses import class_distance, prior_map_distance, total_variation
from qvit.synthesis.objective import Batch, Outcome, View
from qvit.synthesis.priors import (
    draw_labels,
    draw_prior_maps,
    draw_smoothness,
    draw_soft_labels,
)


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of an image with a class of its own; in pixels."""

    image: int
    top: int
    left: int
    height: int
    width: int
    label: int


class SemanticRegions:
    """L = attention APA + classes SL + smoothness TV, on whole images and on their regions, enlarged.

    APA: attention priors, for the second half of the blocks, block l of L with weight l / L. SL: cross-entropy to
    soft labels in which an image wants the classes of all its regions, and a region its own. Regions do not overlap
    (each lies in its own quarter of the image), are fixed for a batch, and an enlarged region moves its own pixels
    only, because it sees no others. Soft labels of the whole images are what is stored.

    Our choice: how regions are drawn, that whole images keep their own term beside them, and where the second half
    begins: blocks floor(L/2) + 1 to L, counted from 1.
    """

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self.batch = batch
        own = draw_labels(batch)
        self.regions = _draw_regions(batch)
        wanted = torch.zeros(
            batch.count + len(self.regions), batch.config.num_classes, dtype=torch.bool
        )
        crowded = {region.image for region in self.regions}
        for image, label in enumerate(own.tolist()):
            wanted[image, label] = image not in crowded
        for row, region in enumerate(self.regions, batch.count):
            wanted[region.image, region.label] = wanted[row, region.label] = True
        soft = draw_soft_labels(wanted, batch).to(device)
        maps = draw_prior_maps(len(wanted), batch).to(device)
        self.smoothness = draw_smoothness(batch)
        self.targets, self.maps = (
            soft.split_with_sizes(self._sizes),
            maps.split_with_sizes(self._sizes, 1),
        )

    @property
    def _sizes(self) -> list[int]:
        return [self.batch.count, len(self.regions)] if self.regions else [self.batch.count]

    @property
    def labels(self) -> Tensor:
        """See Objective."""
        return self.targets[0]

    def views(self, pixels: Tensor, progress: float) -> list[View]:
        """See Objective."""
        placement = self.batch.draw_placement(progress)
        whole = View(placement.apply(pixels), placement)
        if not self.regions:
            return [whole]
        size = self.batch.config.image_size
        enlarged = [
            F.interpolate(
                pixels[r.image, None, :, r.top : r.top + r.height, r.left : r.left + r.width],
                size, mode="bilinear", align_corners=False,
            )
            for r in self.regions
        ]  # fmt: skip
        return [whole, View(torch.cat(enlarged), None)]

    def terms(self, pixels: Tensor, outcomes: Sequence[Outcome]) -> dict[str, Tensor]:
        """See Objective. Means over whole images and regions together."""
        settings = self.batch.settings
        shares = [size / sum(self._sizes) for size in self._sizes]
        found = {}
        if settings.attention:
            priors = zip(shares, outcomes, self.maps, strict=True)
            parts = [share * _distance_to_priors(o, maps) for share, o, maps in priors]
            found["attention"] = torch.stack(parts).sum()
        if settings.classes:
            targets = zip(shares, outcomes, self.targets, strict=True)
            parts = [
                share * class_distance(o.logits, target, settings.class_floor)
                for share, o, target in targets
            ]
            found["classes"] = torch.stack(parts).sum()
        if settings.smoothness:
            found["smoothness"] = (total_variation(pixels) - self.smoothness).abs()
        return found


def _distance_to_priors(outcome: Outcome, maps: Tensor) -> Tensor:
    """Weighted over the second half of the blocks; of patches that were dropped the maps say nothing."""
    depth = len(outcome.records)
    parts = []
    for block in range(depth // 2, depth):
        wanted = maps[block]
        if outcome.kept is not None:
            index = outcome.kept.unsqueeze(1).expand(-1, wanted.shape[1], -1)
            wanted = wanted.gather(2, index)
            wanted = wanted / wanted.sum(-1, keepdim=True)
        attention = outcome.records[block].attention_to_patches()
        parts.append((block + 1) / depth * prior_map_distance(attention, wanted))
    return torch.stack(parts).sum()


def _draw_regions(batch: Batch) -> list[Region]:
    """For every image 0 to `regions` of its quarters, and in each a rectangle of at least half the quarter's sides."""
    height, width = (side // 2 for side in batch.config.image_size)
    found = []
    for image in range(batch.count):
        count = _draw_int(0, batch.settings.regions, batch.generator)
        for quarter in torch.randperm(4, generator=batch.generator).tolist()[:count]:
            tall = _draw_int(height // 2, height, batch.generator)
            wide = _draw_int(width // 2, width, batch.generator)
            top = quarter // 2 * height + _draw_int(0, height - tall, batch.generator)
            left = quarter % 2 * width + _draw_int(0, width - wide, batch.generator)
            label = _draw_int(0, batch.config.num_classes - 1, batch.generator)
            found.append(Region(image, top, left, tall, wide, label))
    return found


def _draw_int(low: int, high: int, generator: Generator) -> int:
    """Uniform, both ends included."""
    return int(torch.randint(low, high + 1, (1,), generator=generator))
