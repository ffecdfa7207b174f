"""How far two runs of a model are apart, and a run that is one unit in the last place apart."""

import torch
from torch import Tensor

from qvit.models.simulated import Simulated
from qvit_kernels import reference
from qvit_kernels.reference import Quantized


class Nudged(Simulated):
    """The simulated execution with every LayerNorm output moved by one unit in the last place."""

    def norm(self, x, norm, to) -> Quantized:
        y = reference.layer_norm(x, norm.weight, norm.bias, norm.eps)
        y = torch.nextafter(y, torch.full_like(y, torch.inf))
        return self.quantize(y, to)


def divergence(a: Tensor, b: Tensor) -> float:
    """Mean KL between the predictions of two runs, in nats."""
    p = a.log_softmax(-1)
    return float((p.exp() * (p - b.log_softmax(-1))).sum(-1).mean())
