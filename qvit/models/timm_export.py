"""The project's float ViT, written into timm's VisionTransformer: the way back from `timm_import`."""

import torch
from torch import Tensor, nn

from qvit.models.vit import ViT

_PATCH_BIAS = "patch_embed.proj.bias"


@torch.no_grad()
def write_model(vit: ViT, model: nn.Module) -> None:
    """Give a timm model of the same shape the weights of a float ViT; they are copied, on the ViT's device.

    LayerScale was multiplied into the weights, so its factors become one. A Linear that has no bias in timm's
    architecture gets one only if the ViT's is not zero (training may have moved it); the bias of the patch embedding
    goes into the position embeddings instead, where there are any. `model` may lie on the meta device.

    Raises RuntimeError, as `load_state_dict` does, for a model of another shape.
    """
    state = {name: value.detach().clone() for name, value in vit.state_dict().items()}
    expected = model.state_dict()
    for name, value in expected.items():
        if name.endswith(".gamma"):
            state[name] = torch.ones(value.shape, device=vit.patch_embed.gain.device)
    window = expected["patch_embed.proj.weight"].shape[1:]
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].view(-1, *window)
    for name in sorted(state.keys() - expected.keys()):
        if not name.endswith(".bias"):
            continue
        if name == _PATCH_BIAS and vit.pos_embed is not None:
            _add_to_positions(state["pos_embed"], state.pop(name), vit)
        elif state[name].any():
            model.get_submodule(name.removesuffix(".bias")).bias = nn.Parameter(state[name])
        else:
            del state[name]
    model.load_state_dict(state, strict=True, assign=True)


def _add_to_positions(positions: Tensor, bias: Tensor, vit: ViT) -> None:
    """Every patch gets its bias with its position; tokens before the patches have none."""
    config = vit.config
    first = 0 if config.no_embed_class else config.num_prefix_tokens
    positions[:, first:] += bias
