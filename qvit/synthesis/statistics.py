"""What BatchNorm remembers of the training data, and how far a batch of images is from it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qvit.models.resnet import ResNet


@dataclass(frozen=True, slots=True)
class NormRecord:
    """One BatchNorm: mean and variance of each channel, [C], in this batch and over the training data.

    Variances are biased, over batch, rows and columns together.
    """

    mean: Tensor
    variance: Tensor
    running_mean: Tensor
    running_variance: Tensor


def statistics_distance(records: Sequence[NormRecord]) -> Tensor:
    """How far a batch is from the training data, layer by layer (DeepInversion, Yin et al., CVPR 2020, eq. 4; GDFQ,
    Xu et al., ECCV 2020, has its square).

        sum over layers l of ||mean_l - running_mean_l||_2 + ||variance_l - running_variance_l||_2

    Returns:
        A scalar, 0 where all statistics agree.
    """
    parts = [
        torch.linalg.vector_norm(r.mean - r.running_mean)
        + torch.linalg.vector_norm(r.variance - r.running_variance)
        for r in records
    ]
    return torch.stack(parts).sum()


def record_statistics(
    network: ResNet, images: Tensor
) -> tuple[Tensor, tuple[Tensor, ...], tuple[NormRecord, ...]]:
    """A forward pass with what every BatchNorm sees.

    Args:
        network: In eval mode, as it always is.
        images: Normalised [B, C, H, W].

    Returns:
        Logits, the outputs of the stages [B, C, h, w], and the records in the order of the pass.
    """
    records: list[NormRecord] = []

    def record(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        variance, mean = torch.var_mean(inputs[0].float(), (0, 2, 3), correction=0)
        records.append(NormRecord(mean, variance, norm.running_mean, norm.running_var))

    handles = [norm.register_forward_pre_hook(record) for norm in network.norms()]
    try:
        stages = network.stages(images)
        return network.forward_head(stages[-1]), stages, tuple(records)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def batch_statistics(network: ResNet) -> Iterator[None]:
    """Let every BatchNorm normalise with the batch's own statistics; what it learned is neither used nor changed."""
    norms = list(network.norms())
    for norm in norms:
        # in this combination torch takes the batch's statistics and counts nothing
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm in norms:
            norm.training, norm.track_running_stats = False, True
