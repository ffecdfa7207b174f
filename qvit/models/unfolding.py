"""From the integers of a checkpoint back to a float ViT: what `folding` did to the weights, undone.

The transforms of inputs leave the weights, and pixel codes become normalised pixels again. The rotations of heads stay
where they were folded in, for they are in no result: Q and K share theirs, and V's is undone in proj.
"""

import torch

from qvit.models.dense import Dense, IntegerDense
from qvit.models.folding import per_column
from qvit.models.vit import PatchEmbed, ViT
from qvit.quant.transforms import unfold_input


@torch.no_grad()
def unfold(integer: ViT) -> ViT:
    """A new float model, on the device of `integer`, whose weights are the values that its integers stand for.

    It computes what the simulated model would with unquantized activations, to fp32 rounding.
    """
    device = integer.patch_embed.gain.device
    with torch.device(device):
        model = ViT(integer.config, None, Dense)
    sources = dict(integer.named_modules())
    for name, module in model.named_modules():
        source = sources.get(name)
        if isinstance(module, Dense):
            assert isinstance(source, IntegerDense)
            module.weight.copy_(unfold_input(source.values(), source.transform))
            module.bias.copy_(source.bias)
            continue
        for key, value in module.named_parameters(recurse=False):
            value.copy_(getattr(source, key))
    _unfold_pixels(model.patch_embed, integer.patch_embed)
    return model.eval().requires_grad_(False)


def _unfold_pixels(embed: PatchEmbed, folded: PatchEmbed) -> None:
    """Make the weight one for normalised pixels x, of which the codes are x * gain + offset."""
    weight = folded.proj.values()
    gain, offset = (per_column(v.double(), folded) for v in (folded.gain, folded.offset))
    embed.proj.weight.copy_(weight * gain)
    embed.proj.bias.copy_(folded.proj.bias + weight @ offset)
