"""From a simulated model to the integers of a checkpoint."""

import torch

from qvit.models.dense import Dense, IntegerDense
from qvit.models.vit import ViT
from qvit.quant.schemes import ModelScheme


@torch.no_grad()
def to_integers(simulated: ViT, scheme: ModelScheme) -> ViT:
    """Quantize and pack every weight; everything else is copied. Both models compute the same codes."""
    integer = ViT(simulated.config, scheme, IntegerDense)
    sources = dict(simulated.named_modules())
    for name, module in integer.named_modules():
        source = sources[name]
        if isinstance(module, IntegerDense):
            assert isinstance(source, Dense)
            module.take(source)
            continue
        for key, value in (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ):
            value.copy_(getattr(source, key))
    return integer.eval().requires_grad_(False)
