"""What the executions can execute: a scheme read from a file is believed only after this."""

import math

from qvit.models.config import ViTConfig
from qvit.quant.schemes import (
    AttentionScheme,
    Granularity,
    LinearScheme,
    Mode,
    ModelScheme,
    Scheme,
)
from qvit.recipe import MAX_BITS, MAX_GROUPED_BITS, MIN_BITS, RESIDUALS

GELUS = ("none", "tanh")
POOLS = ("token", "avg", "max", "avgmax")

# Pixels have a known range: 8 bits hold them exactly, whatever the model's bit-width. Stored are code - 128.
PIXELS = Scheme(bits=8, granularity=Granularity.CHANNEL, mode=Mode.STATIC, symmetric=False)


def check_executable(config: ViTConfig, scheme: ModelScheme) -> None:
    """Raises ValueError naming the first thing that the executions would not do as it is written."""
    blocks = len(scheme.attentions)
    _require(config.depth == blocks, f"depth {config.depth}, and schemes of {blocks} blocks")
    statistics = [*config.mean, *config.std, config.norm_eps]
    _require(all(math.isfinite(v) for v in statistics), "mean, std or norm_eps is not finite")
    _require(min(config.std) > 0 <= config.norm_eps, "std must be positive, norm_eps not negative")
    _require(all(-1 <= v <= 2 for v in config.mean), f"mean {config.mean} is that of no pixels")
    _require(config.gelu in GELUS, f"gelu {config.gelu!r} is none of {GELUS}")
    _require(config.global_pool in POOLS, f"pooling {config.global_pool!r} is none of {POOLS}")
    _require(scheme.residual in RESIDUALS, f"residual {scheme.residual!r} is none of {RESIDUALS}")
    widths = {name: width for name, (_, width) in config.linears().items()}
    _require(widths.keys() == scheme.linears.keys(), "the linears are not those of the model")
    attentions = {f"blocks.{i}.attn" for i in range(config.depth)}
    _require(attentions == scheme.attentions.keys(), "the attentions are not those of the model")
    for name, linear in scheme.linears.items():
        _check_weight(name, linear.weight, widths[name])
        _check_slices(name, linear.weight, config)
        if name == "patch_embed.proj":
            _require(linear.input == PIXELS, f"{name}: its input is not 8-bit pixels")
            _require(linear.transform == 0, f"{name}: pixels are not transformed")
        else:
            _check_input(name, linear, widths[name])
            _check_prefix(name, linear.input.prefix, config)
    for name, attention in scheme.attentions.items():
        _check_attention(name, attention)


def _check_weight(name: str, weight: Scheme, width: int) -> None:
    _check_bits(f"{name}.weight", weight.bits)
    kinds = (Granularity.CHANNEL, Granularity.GROUP)
    _require(
        weight.symmetric and weight.granularity in kinds and weight.mode is not Mode.DYNAMIC,
        f"{name}: weights are symmetric and static, a scale per output channel or group",
    )
    _require(
        not weight.group or width % weight.group == 0, f"{name}: weight group of another width"
    )
    _require(
        not weight.group or weight.columns or min(weight.slices) <= MAX_GROUPED_BITS,
        f"{name}: weight groups at {min(weight.slices)} bits, at most {MAX_GROUPED_BITS} have them",
    )


def _check_slices(name: str, weight: Scheme, config: ViTConfig) -> None:
    """That of an input has none, since its scale is dynamic."""
    if len(weight.slices) == 1:
        return
    for bits in weight.slices:
        _check_bits(f"{name}.weight", bits)
    slices = (len(weight.rows) or 1, len(weight.columns) or 1)
    heads = config.head_slices(name)
    _require(slices == heads, f"{name}: bits of {slices} slices, and its heads have {heads}")
    _require(
        not weight.columns or config.head_dim % weight.group == 0,
        f"{name}: weight groups of {weight.group} columns, which a head's {config.head_dim} are not whole ones of",
    )


def _check_input(name: str, linear: LinearScheme, width: int) -> None:
    scheme = linear.input
    _check_bits(f"{name}.input", scheme.bits)
    kinds = (Granularity.TOKEN, Granularity.GROUP)
    _require(
        scheme.symmetric and scheme.granularity in kinds and scheme.mode is Mode.DYNAMIC,
        f"{name}: inputs are symmetric and dynamic, a scale per token or group",
    )
    _require(not scheme.group or width % scheme.group == 0, f"{name}: groups do not divide {width}")
    fits = linear.transform >= 0 and (linear.transform == 0 or width % linear.transform == 0)
    _require(fits, f"{name}: transform blocks that do not divide {width}")
    _require(
        not (linear.transform and name.endswith("attn.proj")),
        f"{name}: its input is rotated with V, not transformed",
    )


def _check_prefix(name: str, prefix: int, config: ViTConfig) -> None:
    there = config.num_prefix_tokens if name.startswith("blocks.") else 0
    _require(
        type(prefix) is int and prefix in (0, there),
        f"{name}: 8 bits for the first {prefix} tokens of an image, and it has {there} before its patches",
    )


def _check_attention(name: str, attention: AttentionScheme) -> None:
    qkv = attention.qkv
    _check_bits(f"{name}.qkv", qkv.bits)
    _check_bits(f"{name}.softmax", attention.softmax_bits)
    _require(
        qkv.symmetric and qkv.granularity is Granularity.HEAD and qkv.mode is Mode.DYNAMIC,
        f"{name}: Q, K and V are symmetric and dynamic, a scale per token and head",
    )
    _require(qkv.prefix == 0, f"{name}: Q, K and V have the same bits in all tokens")


def _check_bits(name: str, bits: int) -> None:
    whole = type(bits) is int and MIN_BITS <= bits <= MAX_BITS
    _require(whole, f"{name}: {bits} bits, expected {MIN_BITS} to {MAX_BITS}")


def _require(holds: object, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
