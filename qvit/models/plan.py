"""From a recipe and the shape of a model to the scheme of every tensor in it."""

import math
from collections.abc import Iterable
from dataclasses import replace

from qvit.errors import UsageError
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
from qvit.recipe import MAX_BITS, MAX_GROUPED_BITS, Bits, Recipe, check_matches, find_bits


def plan_scheme(config: ViTConfig, recipe: Recipe) -> ModelScheme:
    """Resolve bits, groups and transform blocks; these become sizes that divide each width.

    Raises UsageError for bits of layers that the model does not have, or that cannot have them.
    """
    shapes = config.linears()
    attentions = [f"blocks.{i}.attn" for i in range(config.depth)]
    _check_layers(config, recipe, attentions)
    return ModelScheme(
        linears={name: _linear(name, k, config, recipe) for name, (_, k) in shapes.items()},
        attentions={name: _attention(name, recipe) for name in attentions},
        residual=recipe.residual,
    )


def name_scheme(config: ViTConfig, scheme: ModelScheme) -> str:
    """The scheme's short name: W4A8, the bits of the blocks, as publications have it whatever the ends have; or
    "W3.6A4.2 mixed" where Linears or attentions of blocks differ.

    These are the mean bits of a weight, and of a value that a Linear takes; pixels, of 8 bits always, do not count.
    """
    blocks = {(s.weight.slices, s.input.bits) for n, s in scheme.linears.items() if "blocks." in n}
    if len(blocks) == len(set(scheme.attentions.values())) == 1:
        [((weight_bits,), bits)] = blocks
        return f"W{weight_bits}A{bits}"
    shapes = config.linears()
    weights = _mean((s.weight.mean_bits, math.prod(shapes[n])) for n, s in scheme.linears.items())
    inputs = _mean((s.input.bits, shapes[n][1]) for n, s in scheme.linears.items() if n != _PATCHES)
    return f"W{weights}A{inputs} mixed"


_PATCHES = "patch_embed.proj"
# A model without classifier lacks them, and a recipe that is for any ViT may name them all the same.
_HEADS = ("head", "head_dist")


def _mean(weighed: Iterable[tuple[float, int]]) -> str:
    """The mean of values that each come with a weight: "3.6"."""
    pairs = list(weighed)
    mean = sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)
    return f"{mean:.1f}".removesuffix(".0")


def _check_layers(config: ViTConfig, recipe: Recipe, attentions: Iterable[str]) -> None:
    """Refuse what a recipe's `layers` say in vain."""
    linears = config.linears()
    check_matches(recipe.layers, [*linears, *attentions, *_HEADS])
    for name in linears:
        _check_slices(config, name, find_bits(recipe.layers, name))
    pixels = find_bits(recipe.layers, _PATCHES).activations
    if pixels not in (None, PIXELS.bits):
        raise UsageError(
            f"layers: {_PATCHES} has A{pixels}, and pixels are {PIXELS.bits} bits, whatever the model's: give its"
            " weights alone, such as W4"
        )
    for name in attentions:
        weights = find_bits(recipe.layers, name).weights
        if weights is not None:
            raise UsageError(
                f"layers: {name} has {Bits(weights)}, and the attention products have no weights: give A alone, such as"
                f" A4; its Linears are {name}.qkv and {name}.proj"
            )


def _check_slices(config: ViTConfig, name: str, bits: Bits) -> None:
    found, expected = len(bits.weights or (0,)), math.prod(config.head_slices(name))
    if found in (1, expected):
        return
    if expected == 1:
        raise UsageError(
            f"layers: {name} has {bits}, and the weights of heads are those of attn.qkv and attn.proj: give one number"
            " of bits, such as W4"
        )
    heads = f"{config.num_heads} heads"
    which = heads if expected == config.num_heads else f"Q, K and V of {heads}"
    raise UsageError(
        f"layers: {name} has {bits}, of {found} heads' weights, and expected are {expected}, those of {which}, or one"
        " number for all"
    )


def _attention(name: str, recipe: Recipe) -> AttentionScheme:
    bits, softmax_bits = recipe.attention_bits(name)
    return AttentionScheme(
        qkv=Scheme(bits=bits, granularity=Granularity.HEAD),
        softmax_bits=softmax_bits,
        rotate_qk=recipe.transforms.qk,
        rotate_v=recipe.transforms.v,
    )


def plan_linear(config: ViTConfig, recipe: Recipe, name: str) -> LinearScheme:
    """Of one Linear, whatever the recipe says of others."""
    return _linear(name, config.linears()[name][1], config, recipe)


def _linear(name: str, width: int, config: ViTConfig, recipe: Recipe) -> LinearScheme:
    weight_bits, bits = recipe.layer_bits(name)
    weight = _weight(width, min(weight_bits), recipe)
    if len(set(weight_bits)) > 1:
        weight = _sliced(weight, weight_bits, config, name)
    transform, group = 0, 0
    if name == _PATCHES:
        return LinearScheme(weight=weight, input=PIXELS)
    if name.endswith("attn.proj"):
        group = _whole_heads(width, config.head_dim, recipe.activations.proj_group)
    elif name.endswith("mlp.fc2"):
        group = _divisor(width, recipe.activations.fc2_group)
        transform = fitting_block(width, recipe.transforms.fc2)
    else:
        # eight bits among fewer, those of the head, have levels enough for a scale a token
        group = _divisor(width, recipe.activations.norm_group) if bits < MAX_BITS else 0
        transform = fitting_block(width, recipe.transforms.norm)
    # heads read one pooled token, which the bits of `layers` are for
    wider = name.startswith("blocks.") and bits < recipe.activations.prefix_bits
    prefix = config.num_prefix_tokens if wider else 0
    return LinearScheme(weight=weight, input=_rows(bits, group, prefix), transform=transform)


def _rows(bits: int, group: int, prefix: int) -> Scheme:
    granularity = Granularity.GROUP if group else Granularity.TOKEN
    return Scheme(bits=bits, granularity=granularity, group=group, prefix=prefix)


def _weight(width: int, bits: int, recipe: Recipe) -> Scheme:
    group = _divisor(width, recipe.weights.group) if bits <= MAX_GROUPED_BITS else 0
    granularity = Granularity.GROUP if 0 < group < width else Granularity.CHANNEL
    return Scheme(
        bits=bits,
        granularity=granularity,
        mode=Mode.STATIC,
        group=group if granularity is Granularity.GROUP else 0,
    )


_GROUP = 64  # columns


def _sliced(weight: Scheme, bits: tuple[int, ...], config: ViTConfig, name: str) -> Scheme:
    """The weight with bits for each head's slice; it has groups as that with the fewest bits has them. A head's columns
    are whole groups: of the largest size up to 64 that divides them where the recipe has none, as kernels have tiles.
    """
    rows, _ = config.head_slices(name)
    if rows > 1:
        return replace(weight, bits=max(bits), rows=bits)
    group = math.gcd(weight.group or _GROUP, config.head_dim)
    granularity = Granularity.GROUP
    return replace(weight, bits=max(bits), columns=bits, group=group, granularity=granularity)


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
