"""MaskAQ (ICML 2026, arXiv 2606.04373): MimiQ's images, made with the student in the loop.

Two terms more. Where the teacher's class token looks most, the student shall look as much: images on which a low-bit
network goes astray in detail teach it little. And the attention of an image's patches shall differ among them, as an
object's differs from its background's. Images are made anew from time to time as the student learns; each time is a
run of its own, with that student's digest in its fingerprint.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from qvit.errors import UsageError
from qvit.models.student import Seen, Student
from qvit.synthesis.mimiq import HeadSimilarity
from qvit.synthesis.objective import Batch, Outcome, View

_ROWS = 64  # patches of an image whose attention is compared, drawn anew at each step


class MaskedAlignment(HeadSimilarity):
    """L = MimiQ's terms + alignment L_align + balance L_fb.

    The share of the patches that is compared falls linearly from `focus_first` to `focus_last`.
    """

    def __init__(self, batch: Batch, device: torch.device, student: Student | None) -> None:
        """Raises UsageError where the alignment is asked for and there is no student."""
        super().__init__(batch, device)
        if batch.settings.alignment and student is None:
            raise UsageError(
                "maskaq compares the teacher's attention with a student's, and none was given: train with the recipe "
                "paper-maskaq, which gives its own, or leave the term out with --set synthesis.alignment=0"
            )
        self.student, self.progress = student, 0.0

    def views(self, pixels: Tensor, progress: float) -> list[View]:
        """See Objective."""
        self.progress = progress
        return super().views(pixels, progress)

    def terms(self, pixels: Tensor, outcomes: Sequence[Outcome]) -> dict[str, Tensor]:
        """See Objective."""
        settings, (outcome,) = self.batch.settings, outcomes
        found = super().terms(pixels, outcomes)
        if settings.alignment and self.student is not None:
            share = settings.focus_first + self.progress * (
                settings.focus_last - settings.focus_first
            )
            teacher = [class_scores(r.q, r.k, r.prefix, r.class_token) for r in outcome.records]
            student = student_scores(self.student(outcome.view.images), outcome)
            chosen = draw_focus(teacher, share, settings.masked, self.batch.generator)
            found["alignment"] = masked_difference(teacher, student, chosen)
        if settings.balance:
            rows = [draw_rows(r.q, r.k, r.prefix, self.batch.generator) for r in outcome.records]
            found["balance"] = -torch.stack([similarity_entropy(r) for r in rows]).mean()
        return found


def class_scores(q: Tensor, k: Tensor, prefix: int, class_token: bool) -> Tensor:
    """What the class token's query gives every patch before scale and softmax, averaged over heads.

    Without a class token the mean query of the patches stands for it, as a model that pools patches reads them.

    Args:
        q: [B, H, T, d].
        k: [B, H, T, d].
        prefix: Tokens before the patches.
        class_token: Whether the first of them is the class token.

    Returns:
        fp32 [B, P].
    """
    query = q[:, :, 0] if class_token else q[:, :, prefix:].mean(2)
    return torch.einsum("bhd,bhpd->bp", query.float(), k[:, :, prefix:].float()) / q.shape[1]


def student_scores(seen: Seen, outcome: Outcome) -> list[Tensor]:
    """`class_scores` of a student's blocks. Raises UsageError where it has not as many as the teacher."""
    if len(seen.attention) != len(outcome.records):
        raise UsageError(
            f"the student has {len(seen.attention)} blocks with attention and the teacher {len(outcome.records)}; "
            "a student of the same model is needed"
        )
    return [
        class_scores(ours.q, ours.k, seen.prefix, theirs.class_token)
        for ours, theirs in zip(seen.attention, outcome.records, strict=True)
    ]


@torch.no_grad()
def draw_focus(
    scores: Sequence[Tensor], share: float, masked: float, generator: Generator
) -> Tensor:
    """Which patches are compared: those with the largest mean score over blocks, some of them left out at random.

    Args:
        scores: The teacher's of every block, [B, P].
        share: How many of the P patches; at least one.
        masked: Share of them that is left out; at least one is not.
        generator: Draws P numbers an image, whatever the shares.

    Returns:
        bool [B, P], as many in every row.
    """
    mean = torch.stack(list(scores)).mean(0)
    count = max(1, int(share * mean.shape[1]))
    kept = max(1, round((1 - masked) * count))
    best = mean.topk(count, dim=1).indices
    drawn = torch.rand(mean.shape, generator=generator).to(mean.device)
    left = best.gather(1, drawn.gather(1, best).topk(kept, dim=1).indices)
    return torch.zeros_like(mean, dtype=torch.bool).scatter_(1, left, value=True)


def masked_difference(
    teacher: Sequence[Tensor], student: Sequence[Tensor], chosen: Tensor
) -> Tensor:
    """L_align: mean over blocks, images and chosen patches of |teacher - student|.

    teacher, student: scores of every block, [B, P]; chosen: bool [B, P].
    """
    parts = [
        (ours - theirs).abs()[chosen].mean() for theirs, ours in zip(teacher, student, strict=True)
    ]
    return torch.stack(parts).mean()


def draw_rows(q: Tensor, k: Tensor, prefix: int, generator: Generator) -> Tensor:
    """Scores of 64 patches of each image (all, where there are fewer) with all patches, averaged over heads.

    q, k: [B, H, T, d]; returns fp32 [B, n, P].
    """
    q, k = q[:, :, prefix:].float(), k[:, :, prefix:].float()
    images, heads, patches, width = q.shape
    order = torch.rand((images, patches), generator=generator).argsort(1)[:, :_ROWS].to(q.device)
    index = order[:, None, :, None].expand(-1, heads, -1, width)
    # heads one after the other are one long vector, so that the mean of their products is one product
    some = q.gather(2, index).transpose(1, 2).flatten(2)
    return some @ k.transpose(1, 2).flatten(2).transpose(1, 2) / heads


def similarity_entropy(rows: Tensor) -> Tensor:
    """Entropy in nats that a normal distribution would have with the variance of the rows' similarities.

        mean over images of 1/2 log(2 pi e (var(S) + 1e-8))        S: cosines of all pairs of rows, [n, n]

    Args:
        rows: [B, n, P].
    """
    unit = F.normalize(rows, dim=-1, eps=1e-6)
    spread = (unit @ unit.transpose(1, 2)).flatten(1).var(1, correction=0)
    return (0.5 * (math.log(2 * math.pi * math.e) + (spread + 1e-8).log())).mean()
