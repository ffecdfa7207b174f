"""DeiT and ViT-L in integers with random weights: the values do not change the time."""

import torch
from torch import nn

from benchmarks.cases.kernels import model_config, scheme_of
from qvit.models.dense import IntegerDense
from qvit.models.vit import ViT
from qvit_kernels.reference import code_range, largest_multiplier


def random_vit(
    model: str,
    scheme: str,
    device: torch.device,
    *,
    depth: int | None = None,
    form: str = "default",
) -> ViT:
    """Weights of the scheme's bits, all codes alike often; activations keep the size they have in a trained model.

    depth: None for all blocks of the model.
    """
    torch.manual_seed(0)
    vit = ViT(model_config(model, depth), scheme_of(model, scheme, depth, form), IntegerDense)
    with torch.no_grad():
        for module in vit.modules():
            if isinstance(module, IntegerDense):
                _fill(module)
            elif isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0)
    return vit.to(device).eval().requires_grad_(False)


def _fill(dense: IntegerDense) -> None:
    codes, bits = dense.codes, dense.scheme.weight.bits
    low, high = code_range(bits)
    if codes.dtype == torch.uint8:
        codes.random_(0, 256)
    else:
        codes.copy_(torch.randint(low, high + 1, codes.shape))
    size = 1.0
    if dense.weight_multiplier is not None:
        most = largest_multiplier(bits)
        dense.weight_multiplier.copy_(torch.randint(1, most + 1, dense.weight_multiplier.shape))
        size = most / 2
    # rows of norm one: the output then varies as much as the input
    columns = codes.shape[1] * (2 if codes.dtype == torch.uint8 else 1)
    dense.weight_scale.fill_(1.0 / (size * high * 0.6 * columns**0.5))
