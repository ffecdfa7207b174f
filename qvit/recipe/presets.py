"""Named recipes: what each consists of at given bit-widths, and the figures that decided it."""

from collections.abc import Callable
from typing import Any

from qvit.recipe.bits import MAX_BITS
from qvit.recipe.parts import Activations, Attention, Transforms, Weights
from qvit.recipe.publications import PUBLICATIONS
from qvit.recipe.synthesis import Synthesis

# The ends of a ViT, which publications often leave at 8 bits, too: 6 % of the weights of a ViT-Tiny, 2 % of a ViT-B.
ENDS = {"patch_embed.proj": "W8", "head": "W8A8", "head_dist": "W8A8"}


def _qvit(weight_bits: int, activation_bits: int) -> dict[str, Any]:
    """The default: the best that the project knows at these bit-widths.

    The inputs of proj and fc2 have a scale for each 128 columns at any width: what shares a scale is then in one
    program of a GPU, which takes seven launches a block, and eight or nine with a scale a token.
    """
    activations = Activations(bits=activation_bits, proj_group=128, fc2_group=128)
    if weight_bits >= 8 and activation_bits >= 8:
        # KL on 500 development images 0.0021, and 0.0026 without the LayerNorms' Hadamard, 2 % of the time on a CPU.
        # That of fc2 would make it 0.0016 for 4 %. Rotations of heads cost nothing and show nothing: 0.0020 without.
        # (benchmarks/README.md, Ablations, for these and most that follow.)
        return {
            "weights": Weights(bits=weight_bits),
            "activations": activations,
            "attention": Attention(bits=activation_bits, softmax_bits=activation_bits),
            "transforms": Transforms(norm=64, qk=True, v=True),
        }
    # Mean KL of three seeds on 500 development images, W4A8 and W4A4 (kernels/README.md, Decisions): weight groups none
    # 0.225, 0.436; 64 0.135, 0.329; 32 0.106, 0.285; 16 0.092, 0.272. One scale a token in proj and fc2: 0.107, 0.361.
    # Both attention products take int8 operands whatever their bits: 8 of them cost nothing, and take W4A4 from 0.285
    # to 0.242.
    # The same with groups of 32 weights: rounded for leaves (gptq), W4A4 from 0.184 to 0.151, W3A3 from 1.07 to 0.79;
    # real images bring more, noise nothing at 4 bits (benchmarks/README.md, Rounding).
    # Both ends at 8 bits take W4A4 from 0.185 to 0.151, W3A3 from 1.01 to 0.79.
    # 3 bits and fewer are short of levels, and finer scales pay. W3A3, KL on 125 development images, seed 0: ends alone
    # 1.16, groups of 64 after LayerNorms and of 16 in weights 1.01, and of 64 in fc2 0.90 (benchmarks/README.md, Three
    # bits).
    few = min(weight_bits, activation_bits) <= 3
    if few and activation_bits < 8:
        # The class token is one of 197, and the logits are read from it: with 8 bits in it the KL of a ViT-Tiny W3A3 on
        # 500 development images was 0.808 and not 0.921 (paired difference +-0.025).
        prefix_bits = MAX_BITS if activation_bits <= 3 else 0
        activations = Activations(
            bits=activation_bits,
            prefix_bits=prefix_bits,
            norm_group=64,
            proj_group=64,
            fc2_group=64,
        )
    # Groups of 16 weights and not 32, for 3 % of the file, take a quarter of W4A8's error, which is that of weights,
    # and 6 % of W4A4's: KL on 1000 development images, mean of seeds 0 to 2, 0.045 and not 0.059, 0.141 and not 0.150
    # (intervals of the differences +-0.004, 0.009).
    weight_group = 16 if weight_bits <= 4 else 0
    rounding = "gptq" if weight_bits < 8 else "nearest"
    return {
        "weights": Weights(bits=weight_bits, group=weight_group, rounding=rounding),
        "activations": activations,
        "attention": Attention(),
        "transforms": Transforms(norm=64, fc2=32, qk=True, v=True),
        "layers": dict(ENDS),
        "synthesis": Synthesis.preset("leaves", images=200) if rounding == "gptq" else None,
    }


def _plain(weight_bits: int, activation_bits: int) -> dict[str, Any]:
    """One scale a token or channel and no transform: what a quantizer without tricks does."""
    return {
        "weights": Weights(bits=weight_bits, range="minmax"),
        "activations": Activations(bits=activation_bits),
        "attention": Attention(bits=activation_bits, softmax_bits=activation_bits),
    }


def _published(name: str) -> Callable[[int, int], dict[str, Any]]:
    """Plain quantizers, and what the publication makes of them."""
    return lambda weight_bits, activation_bits: {
        **_plain(weight_bits, activation_bits),
        **PUBLICATIONS[name](),
    }


PRESETS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "qvit": _qvit,
    "plain": _plain,
    **{name: _published(name) for name in PUBLICATIONS},
}
