"""From a recipe and the shape of a model to the scheme of every tensor in it."""

from qvit.models.config import ViTConfig
from qvit.models.validity import PIXELS
from qvit.quant.schemes import (
    AttentionScheme,
    Granularity,
    LinearScheme,
    Mode,
    ModelScheme,
    Scheme,
)
from qvit.quant.transforms import fitting_block
from qvit.recipe import Recipe


def plan_scheme(config: ViTConfig, recipe: Recipe) -> ModelScheme:
    """Resolve groups and transform blocks to sizes that divide each width."""
    linears = {
        name: _linear(name, width, config, recipe) for name, (_, width) in config.linears().items()
    }
    attention = AttentionScheme(
        qkv=Scheme(bits=recipe.attention.bits, granularity=Granularity.HEAD),
        softmax_bits=recipe.attention.softmax_bits,
        rotate_qk=recipe.transforms.qk,
        rotate_v=recipe.transforms.v,
    )
    attentions = {f"blocks.{i}.attn": attention for i in range(config.depth)}
    return ModelScheme(linears=linears, attentions=attentions, residual=recipe.residual)


def _linear(name: str, width: int, config: ViTConfig, recipe: Recipe) -> LinearScheme:
    transform, group = 0, 0
    if name == "patch_embed.proj":
        return LinearScheme(weight=_weight(width, recipe), input=PIXELS)
    if name.endswith("attn.proj"):
        group = _whole_heads(width, config.head_dim, recipe.activations.proj_group)
    elif name.endswith("mlp.fc2"):
        group = _divisor(width, recipe.activations.fc2_group)
        transform = fitting_block(width, recipe.transforms.fc2)
    else:
        transform = fitting_block(width, recipe.transforms.norm)
    return LinearScheme(
        weight=_weight(width, recipe),
        input=_rows(recipe.activations.bits, group),
        transform=transform,
    )


def _rows(bits: int, group: int) -> Scheme:
    granularity = Granularity.GROUP if group else Granularity.TOKEN
    return Scheme(bits=bits, granularity=granularity, group=group)


def _weight(width: int, recipe: Recipe) -> Scheme:
    group = _divisor(width, recipe.weights.group)
    granularity = Granularity.GROUP if 0 < group < width else Granularity.CHANNEL
    return Scheme(
        bits=recipe.weights.bits,
        granularity=granularity,
        mode=Mode.STATIC,
        group=group if granularity is Granularity.GROUP else 0,
    )


def _divisor(width: int, wanted: int) -> int:
    return max((d for d in range(1, min(wanted, width) + 1) if width % d == 0), default=0)


def _whole_heads(width: int, head_dim: int, wanted: int) -> int:
    """The largest number of channels up to `wanted` that is a whole number of heads and divides the width;
    a single head where even that is more than wanted.
    """
    if not wanted:
        return 0
    fits = [d for d in range(head_dim, max(wanted, head_dim) + 1, head_dim) if width % d == 0]
    return max(fits)
