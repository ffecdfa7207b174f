"""The simulated execution: the reference's arithmetic on whole-numbered floats, differentiable everywhere."""

from torch import Tensor, nn

from qvit.models.dense import Dense
from qvit.models.vit import Attention, Mlp, PatchEmbed, ViT
from qvit_kernels import reference
from qvit_kernels.reference import Quantized, Weight


class Simulated:
    """What the integer execution computes, in floats, with straight-through gradients."""

    def embed(self, images: Tensor, embed: PatchEmbed) -> Tensor:
        """Patch tokens, fp32 [B, P, D]."""
        codes = reference.quantize_pixels(images, embed.gain, embed.offset)
        patches = reference.unfold_patches(codes, embed.patch)
        weight = self.weight_of(embed.proj)
        return reference.linear(Quantized(patches, embed.unit), weight, embed.proj.bias, 128 * 127)

    def tokens(self, images: Tensor, vit: ViT) -> Tensor:
        """See Execution."""
        return vit.place(self.embed(images, vit.patch_embed))

    def norm(self, x: Tensor, norm: nn.LayerNorm, to: Dense) -> Quantized:
        """See Execution."""
        return self.quantize(reference.layer_norm(x, norm.weight, norm.bias, norm.eps), to)

    def qkv(self, h: Quantized, attn: Attention) -> tuple[Quantized, Quantized, Quantized]:
        """See Execution."""
        q, k, v = reference.split_heads(self.product(h, attn.qkv), attn.heads)
        if attn.norm is not None:
            q, k = reference.normalize_heads(q, k, attn.norm, attn.rotation)
        return tuple(self.quantize_heads(t, attn) for t in (q, k, v))  # pyright: ignore[reportReturnType]

    def attention(self, q: Quantized, k: Quantized, v: Quantized, attn: Attention) -> Quantized:
        """See Execution."""
        return self.quantize(self.attend(q, k, v, attn), attn.proj)

    def attend(self, q: Quantized, k: Quantized, v: Quantized, attn: Attention) -> Tensor:
        """Attention before it is quantized for proj: fp32 [B, T, H*d]."""
        return reference.attention(
            q, k, v, softmax_scale=attn.softmax_scale, softmax_bits=attn.scheme.softmax_bits
        )

    def residual(self, x: Tensor, h: Quantized, dense: Dense) -> Tensor:
        """See Execution."""
        return (x.float() + self.product(h, dense)).to(x.dtype)

    def gelu(self, h: Quantized, mlp: Mlp) -> Quantized:
        """See Execution."""
        return self.quantize(reference.gelu(self.product(h, mlp.fc1), mlp.gelu), mlp.fc2)

    def head(self, x: Tensor, dense: Dense) -> Tensor:
        """See Execution."""
        return self.logits(self.quantize(x, dense), dense)

    def logits(self, h: Quantized, dense: Dense) -> Tensor:
        """See Execution."""
        return self.product(h, dense)

    def product(self, x: Quantized, dense: Dense) -> Tensor:
        """The Linear of every step but the patch embedding: fp32 [..., N]."""
        weight = self.weight_of(dense)
        largest = 127 if weight.multiplier is not None else dense.scheme.weight.largest
        return reference.linear(x, weight, dense.bias, dense.scheme.input.largest * largest)

    def weight_of(self, dense: Dense) -> Weight:
        """The weight that a Linear multiplies with."""
        return dense.quantized_weight()

    def quantize_heads(self, x: Tensor, attn: Attention) -> Quantized:
        """Q, K or V of every head, [B, H, T, d], in codes."""
        return reference.quantize_heads(x, attn.scheme.qkv.bits)

    def quantize(self, x: Tensor, to: Dense) -> Quantized:
        """The input of a Linear, [..., K], transformed and in the codes that it takes."""
        scheme = to.scheme.input
        return reference.quantize_rows(
            reference.block_transform(x, to.transform),
            scheme.bits,
            scheme.group,
            prefix=scheme.prefix,
        )
