"""Divergence: how far the student's probabilities are from the teacher's."""

import torch.nn.functional as F
from torch import Tensor


def soft_divergence(
    teacher: Tensor, student: Tensor, temperature: float = 1.0, *, over_classes: bool = False
) -> Tensor:
    """tau^2 KL(softmax(t / tau) || softmax(s / tau)), averaged over the batch (Hinton et al. 2015).

    MimiQ (Choi et al., AAAI 2025) uses tau = 5 and AIT (Choi et al., CVPR 2022) 20. AIT's code averages over classes
    as well, which divides the loss, and so the rate that fits it, by their number.

    Args:
        teacher: Logits fp32 [B, classes].
        student: The same of the student.
        temperature: tau.
        over_classes: Divide by the number of classes.

    Returns:
        A scalar in nats.
    """
    targets = F.log_softmax(teacher / temperature, -1)
    found = F.log_softmax(student / temperature, -1)
    distance = F.kl_div(found, targets, reduction="batchmean", log_target=True) * temperature**2
    return distance / teacher.shape[-1] if over_classes else distance
