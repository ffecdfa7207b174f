"""The objective: which losses a run has, by the weights in its settings."""

import torch.nn.functional as F
from torch import Tensor

from qvit.distillation.discrepancy import logit_discrepancy
from qvit.distillation.divergence import soft_divergence
from qvit.distillation.features import feature_distance
from qvit.distillation.heads import head_distance
from qvit.errors import UsageError
from qvit.models.student import Seen
from qvit.recipe import Distillation


def losses(
    teacher: Seen, student: Seen, labels: Tensor | None, settings: Distillation
) -> dict[str, Tensor]:
    """The terms of the loss, scalars before they are weighted, named as their weights in Distillation.

    Args:
        teacher: Without gradients.
        student: On the same images.
        labels: int64 [B] or probabilities [B, classes]; None where the images were made for no class.
        settings: Terms with weight 0 are not computed.

    Raises:
        UsageError: The cross-entropy is asked for, and there are no labels.
    """
    found = {}
    if settings.kl:
        found["kl"] = soft_divergence(
            teacher.logits, student.logits, settings.temperature, over_classes=settings.kl_mean
        )
    if settings.logits:
        found["logits"] = logit_discrepancy(teacher.logits, student.logits)
    if settings.classes:
        if labels is None or (labels.dim() == 1 and bool((labels < 0).any())):
            raise UsageError(
                "distillation.classes needs images that were made for classes, and these have no labels; set it to 0"
            )
        found["classes"] = F.cross_entropy(student.logits.float(), labels)
    if settings.heads:
        found["heads"] = head_distance(teacher, student, settings.heads_focus, settings.heads_share)
    if settings.features:
        found["features"] = feature_distance(teacher.features, student.features)
    return found
