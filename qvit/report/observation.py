"""The teacher's answers to a set of images: one pass, everything the sections need of it."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from qvit.models.vit import Attention, ViT
from qvit.report.evidence import Observation
from qvit.report.pictures import to_pixels
from qvit.report.ranges import RangeRecorder
from qvit.synthesis import measures
from qvit.synthesis.recording import attend_to_patches

BATCH = 32  # images at a time: bounds the memory, and nothing that is reported depends on it


class Watcher(RangeRecorder):
    """The float execution, noting ranges and how much every head looks at each patch, block after block."""

    def __init__(self, model: ViT) -> None:
        super().__init__(model)
        self._tokens = model.config.num_prefix_tokens, model.config.class_token
        self._maps: list[Tensor] = []

    def attention(self, q: Tensor, k: Tensor, v: Tensor, attn: Attention) -> Tensor:
        """See Execution."""
        self._maps.append(attend_to_patches(q, k, attn.softmax_scale, *self._tokens))
        return super().attention(q, k, v, attn)

    def take_maps(self) -> Tensor:
        """The maps of the last forward pass, fp32 [B, blocks, heads, patches]."""
        maps, self._maps = torch.stack(self._maps, dim=1), []
        return maps


@torch.no_grad()
def observe(
    model: ViT,
    role: str,
    images: Tensor,
    *,
    wanted: Sequence[int] | None = None,
    shown: int = 32,
    mapped: int = 3,
    together: int = measures.TOGETHER,
) -> Observation:
    """Run the teacher over normalised images [N, 3, H, W] (any float dtype).

    Args:
        model: The float teacher.
        role: Whose images they are.
        images: All of them, in memory.
        wanted: The class each was made for.
        shown: Keep the pixels of so many.
        mapped: Keep the attention maps of so many.
        together: Measure so many at a time.
    """
    config, run = model.config, Watcher(model)
    predicted, confidence, maps = [], [], []
    mapped_at, shown_at = spread(len(images), mapped), spread(len(images), shown)
    for batch in _batches(images):
        logits = model(batch, run)
        if config.num_classes:
            sure, best = logits.softmax(-1).max(-1)
            predicted += best.tolist()
            confidence += sure.tolist()
        maps.append(run.take_maps())
    found = measures.measure(model, images.float(), together)
    return Observation(
        role=role,
        count=len(images),
        shown=shown_at,
        pixels=to_pixels(images[shown_at], config.mean, config.std),
        wanted=wanted,
        predicted=predicted,
        confidence=confidence,
        mapped=mapped_at,
        starts=to_pixels(images[mapped_at], config.mean, config.std),
        attention=torch.cat(maps)[mapped_at],
        measures=measures.summarise(found),
        profiles={name: found[name] for name in ("head_distances", "patch_entropies")},
        ranges=run.ranges,
    )


def spread(total: int, count: int) -> list[int]:
    """`count` positions of `total`, evenly spread, in order; all of them where there are no more."""
    count = min(count, total)
    return [i * total // count for i in range(count)]


def _batches(images: Tensor) -> Iterable[Tensor]:
    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH].float()
