"""The integer execution: one operation of qvit_kernels a step; the backend is chosen there."""

from torch import Tensor, nn

from qvit.models.dense import IntegerDense
from qvit.models.vit import Attention, Mlp, ViT
from qvit_kernels import ops
from qvit_kernels.argument_checks import FLOATS
from qvit_kernels.reference import Quantized


class Integer:
    """Stored integers in, integers between the steps. `backend`: None goes by the current choice."""

    def __init__(self, backend: str | None = None) -> None:
        self._backend = backend

    def tokens(self, images: Tensor, vit: ViT) -> Tensor:
        """See Execution."""
        embed = vit.patch_embed
        patches = ops.quantize_pixels(
            images if images.dtype in FLOATS else images.float(),
            embed.gain,
            embed.offset,
            embed.patch,
            backend=self._backend,
        )
        return ops.linear_embed(
            Quantized(patches, embed.unit),
            embed.proj.stored,
            embed.proj.bias,
            vit.prefix,
            vit.positions,
            vit.token_dtype,
            backend=self._backend,
        )

    def norm(self, x: Tensor, norm: nn.LayerNorm, to: IntegerDense) -> Quantized:
        """See Execution."""
        scheme = to.scheme.input
        return ops.layernorm_quantize(
            x,
            norm.weight,
            norm.bias,
            norm.eps,
            to.transform,
            scheme.bits,
            scheme.group,
            packed=self._packs(to, x),
            prefix=scheme.prefix,
            backend=self._backend,
        )

    def qkv(self, h: Quantized, attn: Attention) -> tuple[Quantized, Quantized, Quantized]:
        """See Execution."""
        dense, bits = attn.qkv, attn.scheme.qkv.bits
        return ops.linear_qkv(
            h,
            dense.stored,
            dense.bias,
            attn.heads,
            bits,
            attn.norm,
            attn.rotation,
            backend=self._backend,
        )

    def attention(self, q: Quantized, k: Quantized, v: Quantized, attn: Attention) -> Quantized:
        """See Execution."""
        to = attn.proj.scheme.input
        packed = self._packs(attn.proj, q.codes) and q.codes.shape[-1] % 32 == 0
        return ops.attention(
            q,
            k,
            v,
            attn.softmax_scale,
            attn.scheme.softmax_bits,
            to.bits,
            to.group,
            packed=packed,
            prefix=to.prefix,
            backend=self._backend,
        )

    def residual(self, x: Tensor, h: Quantized, dense: IntegerDense) -> Tensor:
        """See Execution."""
        return ops.linear_residual(h, dense.stored, dense.bias, x, backend=self._backend)

    def gelu(self, h: Quantized, mlp: Mlp) -> Quantized:
        """See Execution."""
        to, dense = mlp.fc2.scheme.input, mlp.fc1
        return ops.linear_gelu_quantize(
            h,
            dense.stored,
            dense.bias,
            mlp.gelu,
            mlp.fc2.transform,
            to.bits,
            to.group,
            packed=self._packs(mlp.fc2, h.codes),
            prefix=to.prefix,
            backend=self._backend,
        )

    def head(self, x: Tensor, dense: IntegerDense) -> Tensor:
        """See Execution."""
        scheme = dense.scheme.input
        codes = ops.quantize_rows(
            x,
            dense.transform,
            scheme.bits,
            scheme.group,
            packed=self._packs(dense, x),
            backend=self._backend,
        )
        return self.logits(codes, dense)

    def logits(self, h: Quantized, dense: IntegerDense) -> Tensor:
        """See Execution."""
        return ops.linear(h, dense.stored, dense.bias, backend=self._backend)

    def _packs(self, to: IntegerDense, x: Tensor) -> bool:
        """Whether the input of `to` travels as two 4-bit codes a byte: for the GPU kernels, which unpack in registers.

        They do so in blocks of 64 columns, with packed weights; a processor would only unpack to memory.
        """
        scheme = to.scheme
        if not (x.is_cuda or self._backend == "triton"):
            return False
        if scheme.container_bits != 4 or scheme.input.bits > 4 or scheme.input.prefix:
            return False
        return to.codes.shape[1] % 32 == 0 and scheme.input.group % 64 == 0
