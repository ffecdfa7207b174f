"""From a float ViT to one ready to be simulated: transforms folded into the weights.

LayerNorm and GELU outputs go through their transform where they are made, so only the next weight changes
here. Q and K of a head take the same rotation, V's is undone in proj: nothing is left to compute online,
except after QK-norm, whose rotation stays with the norm.
"""

import torch
from torch import Tensor

from qvit.models.config import ViTConfig
from qvit.models.dense import Dense
from qvit.models.vit import Attention, PatchEmbed, ViT
from qvit.quant.schemes import ModelScheme
from qvit.quant.transforms import fold_input, fold_output, random_signs
from qvit_kernels.reference import BlockTransform


@torch.no_grad()
def fold(model: ViT, scheme: ModelScheme, *, seed: int) -> ViT:
    """A new model under `scheme` that computes the same function in float (to 1e-3 in the logits).

    `seed` decides the signs of the transforms.
    """
    config = model.config
    folded = ViT(config, scheme, Dense)
    generator = torch.Generator().manual_seed(seed)
    _copy_parameters(model, folded)
    for module in folded.modules():
        if isinstance(module, Dense) and module.signs is not None:
            module.signs.copy_(random_signs(module.signs.numel(), generator))
            module.weight.copy_(fold_input(module.weight, module.transform))
        elif isinstance(module, Attention):
            _rotate_heads(module, config, generator)
    _fold_pixels(folded.patch_embed)
    return folded.eval()


def _copy_parameters(model: ViT, folded: ViT) -> None:
    report = folded.load_state_dict(model.state_dict(), strict=False)
    new = {name.rpartition(".")[2] for name in report.missing_keys}
    assert not report.unexpected_keys
    assert new <= {"weight_scale", "weight_multiplier", "signs"}, (
        f"left unset: {report.missing_keys}"
    )


def _rotate_heads(attn: Attention, config: ViTConfig, generator: torch.Generator) -> None:
    scheme, size = attn.scheme, config.head_dim
    assert scheme is not None
    rotations = [BlockTransform(random_signs(size, generator), size) for _ in range(2)]
    rotate_qk, rotate_v = rotations
    weights = list(attn.qkv.weight.chunk(3))
    biases = list(attn.qkv.bias.chunk(3))
    if scheme.rotate_qk and attn.signs is not None:
        attn.signs.copy_(rotate_qk.signs)
    elif scheme.rotate_qk:
        for i in (0, 1):
            weights[i], biases[i] = _rotate_rows(weights[i], biases[i], rotate_qk, config)
    if scheme.rotate_v:
        weights[2], biases[2] = _rotate_rows(weights[2], biases[2], rotate_v, config)
        attn.value_signs = rotate_v.signs
        columns = BlockTransform(rotate_v.signs.repeat(config.num_heads), size)
        attn.proj.weight.copy_(fold_input(attn.proj.weight, columns))
    attn.qkv.weight.copy_(torch.cat(weights))
    attn.qkv.bias.copy_(torch.cat(biases))


def _rotate_rows(
    weight: Tensor, bias: Tensor, rotation: BlockTransform, config: ViTConfig
) -> tuple[Tensor, Tensor]:
    repeated = BlockTransform(rotation.signs.repeat(config.num_heads), rotation.block)
    return fold_output(weight, bias, repeated)


def _fold_pixels(embed: PatchEmbed) -> None:
    """Make the weight one for pixel codes: x = (code - offset) / gain."""
    embed.proj.weight.div_(per_column(embed.gain, embed))
    offsets = per_column(embed.offset, embed).expand_as(embed.proj.weight)
    embed.proj.bias.sub_((embed.proj.weight * offsets).sum(1))


def per_column(values: Tensor, embed: PatchEmbed) -> Tensor:
    """A value per channel [C] to one per column of the patch embedding [C * ph * pw]."""
    return values.repeat_interleave(embed.patch[0] * embed.patch[1])
