"""Discrepancy: the game of PSAQ-ViT V2, seen from the student's side."""

from torch import Tensor


def logit_discrepancy(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean absolute difference of logits [B, classes]: what images make large and the student makes small.

    PSAQ-ViT V2 (Li et al., TNNLS 2023) publishes the game and not its formula; this one is our reconstruction.
    """
    return (teacher - student).abs().mean()
