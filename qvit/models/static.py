"""The static execution: the quantizers that publications compare with, one scale and zero point a tensor.

Quantized as in MimiQ (Choi et al., AAAI 2025): weights and inputs of every Linear, the weights of the patch embedding,
and both operands of both attention products; softmax outputs and GELU outputs may be left out. The arithmetic of
LayerNorm, softmax and GELU, the residual stream, biases and position embeddings are not; the image is not. For
simulation only: no kernel computes it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvit.models.dense import Dense
from qvit.models.vit import Attention, Mlp, PatchEmbed, ViT
from qvit.quant.static_activations import ActivationQuantizer, activation_quantizer
from qvit.quant.static_weights import WeightQuantizer
from qvit.recipe import Recipe
from qvit_kernels.reference import code_range, gelu, normalize_heads, split_heads, unfold_patches


class StaticDense(nn.Module):
    """A Linear with static quantizers. weight: fp32 [N, K]; bias: fp32 [N]; `input` None: it comes as it is."""

    input: ActivationQuantizer | None

    def __init__(
        self, source: Dense, weights: WeightQuantizer, input: ActivationQuantizer | None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(source.weight.detach().clone())
        self.bias = nn.Parameter(source.bias.detach().clone())
        self.quantizer = weights
        self.quantizer.fit(self.weight)
        self.input = input

    def limits(self) -> tuple[int, int]:
        """The smallest and the largest code."""
        return code_range(self.quantizer.bits)

    def steps(self) -> Tensor:
        """The step of every row, fp32 [N, 1]."""
        return self.quantizer.steps(self.weight)

    def codes_of(self, weight: Tensor) -> Tensor:
        """Codes that a weight [N, K] has on this grid, as whole-numbered floats."""
        return self.quantizer.codes(weight.unsqueeze(0)).squeeze(0)

    def hold(self) -> None:
        """From now on the grid stays, whatever becomes of the weight."""
        self.quantizer.hold(self.weight)

    @torch.no_grad()
    def grow(self, factor: Tensor) -> None:
        """Multiply the steps of a grid that stays, by fp32 [N]."""
        self.quantizer.scale.mul_(factor)


class AttentionQuantizers(nn.Module):
    """Of the operands of both products: q, k, softmax(q k^T), v."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        assert recipe.static is not None
        bits = recipe.attention.bits
        self.q, self.k, self.v = (activation_quantizer(bits, recipe.static) for _ in range(3))
        self.softmax = activation_quantizer(
            recipe.attention.softmax_bits, recipe.static, recipe.static.softmax
        )


def with_static_quantizers(vit: ViT, recipe: Recipe) -> ViT:
    """A copy of a float model whose Linears and attentions have static quantizers, not calibrated yet.

    Raises:
        ValueError: The recipe has no section `static`.
    """
    if recipe.static is None:
        raise ValueError("the recipe has no static quantizers: give it a section `static`")
    found = ViT(vit.config, None, Dense)
    found.load_state_dict(vit.state_dict())
    ends = recipe.static.ends
    for name in vit.config.linears():
        parent, _, leaf = name.rpartition(".")
        owner = found.get_submodule(parent)
        source = getattr(owner, leaf)
        end = ends if name in ("patch_embed.proj", "head", "head_dist") else 0
        weights = WeightQuantizer(
            end or recipe.weights.bits, recipe.weights.range, len(source.weight)
        )
        x = None
        if name != "patch_embed.proj":
            grid = recipe.static.gelu if leaf == "fc2" else "linear"
            x = activation_quantizer(end or recipe.activations.bits, recipe.static, grid)
        setattr(owner, leaf, StaticDense(source, weights, x))
    for block in found.blocks:
        block.attn.quantizers = AttentionQuantizers(recipe)  # pyright: ignore[reportAttributeAccessIssue]
    return found.eval()


class Static:
    """Fake quantization by the modules of a model from `with_static_quantizers`."""

    def embed(self, images: Tensor, embed: PatchEmbed) -> Tensor:
        """Patch tokens, fp32 [B, P, D]."""
        return self.product(unfold_patches(images, embed.patch), embed.proj).float()

    def tokens(self, images: Tensor, vit: ViT) -> Tensor:
        """See Execution."""
        return vit.place(self.embed(images, vit.patch_embed))

    def norm(self, x: Tensor, norm: nn.LayerNorm, to: StaticDense) -> Tensor:
        """See Execution."""
        return _input(norm(x), to)

    def qkv(self, h: Tensor, attn: Attention) -> tuple[Tensor, Tensor, Tensor]:
        """See Execution."""
        q, k, v = split_heads(self.product(h, attn.qkv), attn.heads)
        if attn.norm is not None:
            q, k = normalize_heads(q, k, attn.norm, None)
        own: AttentionQuantizers = attn.quantizers  # pyright: ignore[reportAssignmentType]
        return own.q(q), own.k(k), own.v(v)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, attn: Attention) -> Tensor:
        """See Execution."""
        return _input(self.attend(q, k, v, attn), attn.proj)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attn: Attention) -> Tensor:
        """Attention before it is quantized for proj: [B, T, H*d]."""
        scores = (q @ k.transpose(-1, -2)).float() * attn.softmax_scale
        own: AttentionQuantizers = attn.quantizers  # pyright: ignore[reportAssignmentType]
        shares = own.softmax(torch.softmax(scores, -1))
        return (shares @ v).transpose(1, 2).flatten(-2)

    def residual(self, x: Tensor, h: Tensor, dense: StaticDense) -> Tensor:
        """See Execution."""
        return x + self.product(h, dense)

    def gelu(self, h: Tensor, mlp: Mlp) -> Tensor:
        """See Execution."""
        return _input(gelu(self.product(h, mlp.fc1), mlp.gelu), mlp.fc2)

    def head(self, x: Tensor, dense: StaticDense) -> Tensor:
        """See Execution."""
        return self.logits(_input(x, dense), dense)

    def logits(self, h: Tensor, dense: StaticDense) -> Tensor:
        """See Execution."""
        return self.product(h, dense).float()

    def product(self, x: Tensor, dense: StaticDense) -> Tensor:
        """Every Linear: [..., N] of [..., K], which is on its grid already."""
        return F.linear(x, self.weight_of(dense), dense.bias)

    def weight_of(self, dense: StaticDense) -> Tensor:
        """The weight that a Linear multiplies with."""
        return dense.quantizer(dense.weight)


def _input(x: Tensor, to: StaticDense) -> Tensor:
    assert to.input is not None
    return to.input(x)
