"""BitOps: multiply-accumulates of an image, each weighed by the product of its operands' bits (Q-ViT's measure)."""

from qvit.models.config import ViTConfig
from qvit.quant.schemes import ModelScheme
from qvit.recipe import MAX_BITS

PATCHES = "patch_embed.proj"
_HEADS = ("head", "head_dist")


def linear_macs(config: ViTConfig) -> dict[str, int]:
    """Multiply-accumulates of every Linear for one image; a head sees one token."""
    return {name: _rows(config, name) * n * k for name, (n, k) in config.linears().items()}


def _rows(config: ViTConfig, name: str) -> int:
    rows = {PATCHES: config.num_patches, **dict.fromkeys(_HEADS, 1)}
    return rows.get(name, config.num_prefix_tokens + config.num_patches)


def attention_macs(config: ViTConfig) -> int:
    """Of one of the two products of an attention, Q K^T or that with V, for one image."""
    tokens = config.num_prefix_tokens + config.num_patches
    return tokens**2 * config.num_heads * config.head_dim


def count_macs(config: ViTConfig) -> int:
    """Of a model, for one image."""
    return sum(linear_macs(config).values()) + 2 * config.depth * attention_macs(config)


def count_bitops(config: ViTConfig, scheme: ModelScheme) -> dict[str, int]:
    """BitOps of every Linear and attention for one image, by name.

    Per block, with N tokens, width C and I = heads * channels: 3 N C I b_w b_x of qkv, N^2 I b_q b_k and N^2 I b_p b_v
    of the attention products (b_p: softmax numerators), N I C b_w b_x of proj, N C H b_w b_x each of fc1 and fc2; patch
    embedding and head likewise. With 4 bits, and 8 in the patch embedding and the head, DeiT-T has 21.455 G. Where the
    weights of heads differ, b_w is their mean, since all have as many: an equal part of the rows of qkv, or of the
    columns of proj. Prefix tokens of 8 bits count as such: b_x is the mean of all rows.
    """
    linears, product = linear_macs(config), attention_macs(config)
    found = {}
    for name, linear in scheme.linears.items():
        rows, weight, inputs = _rows(config, name), linear.weight, linear.input
        of_inputs = (rows - inputs.prefix) * inputs.bits + inputs.prefix * MAX_BITS
        macs = linears[name] // rows // len(weight.slices)  # of a row and a slice
        found[name] = macs * sum(weight.slices) * of_inputs
    for name, attention in scheme.attentions.items():
        bits = attention.qkv.bits
        found[name] = product * bits * (bits + attention.softmax_bits)
    return found
