"""The steps of an integer ViT for one image, as the compiled path takes them, and the memory that they write to."""

from typing import Any

import torch
from torch import Tensor, nn

from qvit import machine
from qvit.models.dense import IntegerDense
from qvit.models.vit import Block, ViT
from qvit_kernels import compiled
from qvit_kernels import compiled_program as program
from qvit_kernels.compiled_program import ACTIVATIONS, Members, Panels

# What the steps are called, in order: before the blocks, of each block, behind them.
EMBEDDING_STEPS = ("pixels", "patch_embed")
BLOCK_STEPS = ("norm1", "qkv", "attention", "quantize", "proj", "norm2", "fc1", "fc2")
HEAD_STEPS = ("norm", "head")

_Rows = tuple[Tensor, Tensor]  # codes and scales


def pack_weights(vit: ViT) -> None:
    """Every weight as products read it. What unpacking took goes back block by block: of DeiT-S at W4A4 the allocator
    would keep 10 MB, a sixth of what all takes.
    """
    for part in (vit.patch_embed, *vit.blocks, vit.head):
        for dense in () if part is None else part.modules():
            if isinstance(dense, IntegerDense):
                _panels(dense)
        machine.release_memory()


@torch.no_grad()
def place_nothing(vit: ViT) -> Tensor:
    """The residual stream of patches of zeros, fp32 [T, D]: prefix tokens, and positions."""
    config = vit.config
    return vit.place(torch.zeros(1, config.num_patches, config.embed_dim, device="cpu"))[0]


class ImageMemory:
    """Memory of one image on its way through a ViT; every block writes to the same."""

    def __init__(self, vit: ViT) -> None:
        config, embed = vit.config, vit.patch_embed
        self._vit = vit
        self._patches = config.num_patches
        self.tokens = config.num_prefix_tokens + config.num_patches
        block: Any = vit.blocks[0]
        attn, mlp = block.attn, block.mlp
        inner, hidden, dim = attn.proj.in_features, mlp.fc2.in_features, config.embed_dim
        heads, width = (1, attn.heads, self.tokens), inner // attn.heads
        self._pixels = _codes(self._patches, embed.proj.in_features), _floats(1, 1).fill_(1)
        self._normed = _codes(self.tokens, dim), self._scales("attn.qkv", "mlp.fc1")
        self._queries = [(_codes(*heads, width), _floats(*heads, 1)) for _ in range(3)]
        self._attended = _floats(self.tokens, inner)
        self._projected = _codes(self.tokens, inner), self._scales("attn.proj")
        self._activated = _codes(self.tokens, hidden), self._scales("mlp.fc2")
        self._begun, self._between, self._after = (_floats(self.tokens, dim) for _ in range(3))

    def embedding(self, empty: Tensor) -> list[Members]:
        """From pixels to the residual stream. The prefix tokens are written once, here: no step touches them.

        empty: see `place_nothing`.
        """
        vit, config = self._vit, self._vit.config
        embed, first = vit.patch_embed, config.num_prefix_tokens
        self._begun[:first] = empty[:first]
        positions = empty[first:] if vit.pos_embed is not None else None
        height, width = config.image_size
        images = torch.empty(1, config.in_chans, height, width, device="meta")
        read = compiled.pixels_step(images, embed.gain, embed.offset, embed.patch, self._pixels[0])
        read |= {"x": None, "x_image": images.numel() * 4}
        project = self._linear(embed.proj, self._pixels, self._patches)
        project |= {"together": 1, "x_pitch": 0, "out": self._begun[first:], "residual": positions}
        return [read, project]

    def blocks(self) -> list[Members]:
        """All blocks; what the last step writes is the stream that leaves them, fp32 [T, D]."""
        x, steps = self._begun, []
        for block in self._vit.blocks:
            steps += self._block(block, x)  # pyright: ignore[reportArgumentType]
            x = self._after
        steps[0]["together"] = 1  # patches are not shared among threads as tokens are
        return steps

    def head(self) -> list[Members]:
        """Norm, quantization and head of the first token: what the last step writes are logits, fp32 [classes]."""
        head: IntegerDense = self._vit.head
        norm = self._vit.norm
        assert norm is not None
        first = _codes(1, head.in_features), _floats(1, _groups(head))
        read = self._quantize(self._after, head, first, 1) | _parameters(norm) | {"together": 1}
        multiply = self._linear(head, first, 1) | {"out": None, "out_image": head.bias.numel() * 4}
        return [read, multiply | {"together": 1}]

    def _block(self, block: Block, x: Tensor) -> list[Members]:
        attn, mlp, rows = block.attn, block.mlp, self.tokens
        between, after = self._between, self._after
        return [
            self._quantize(x, attn.qkv, self._normed, rows) | _parameters(block.norm1),
            self._qkv(block),
            self._attention(block),
            self._quantize(self._attended, attn.proj, self._projected, rows) | {"together": 1},
            self._linear(attn.proj, self._projected, rows) | {"out": between, "residual": x},
            self._quantize(between, mlp.fc1, self._normed, rows) | _parameters(block.norm2),
            self._linear(mlp.fc1, self._normed, rows)
            | {"activation": ACTIVATIONS[mlp.gelu]}
            | _quantization(mlp.fc2, self._activated),
            self._linear(mlp.fc2, self._activated, rows) | {"out": after, "residual": between},
        ]

    def _quantize(self, x: Tensor, to: IntegerDense, out: _Rows, rows: int) -> Members:
        step = {"kind": "rows", "rows": rows, "k": to.in_features, "x": x}
        return step | _quantization(to, out)

    def _linear(self, dense: IntegerDense, x: _Rows, rows: int) -> Members:
        groups, panels = _groups(dense), _panels(dense)
        operand = {"x": x[0], "x_scale": x[1], "x_pitch": groups, "groups": groups}
        right = program.weight(panels, dense.stored.scale, dense.bias)
        return {"kind": "linear", "rows": rows} | operand | right

    def _qkv(self, block: Block) -> Members:
        attn = block.attn
        step = (
            self._linear(attn.qkv, self._normed, self.tokens)
            | {"kind": "qkv"}
            | self._heads(attn.heads)
        )
        step |= program.grid(attn.scheme.qkv.bits, self._queries[0][0].shape[-1], 0, None)
        if attn.norm is not None:
            names = ("norm_weight", "norm_bias", "k_weight", "k_bias", "eps")
            step |= dict(zip(names, attn.norm, strict=True)) | program.transform(attn.rotation)
        return step

    def _attention(self, block: Block) -> Members:
        attn = block.attn
        step = {"kind": "attention", "together": 1, "rows": 1, "out": self._attended}
        softmax = compiled.softmax(attn.softmax_scale, attn.scheme.softmax_bits)
        return step | self._heads(attn.heads) | softmax

    def _heads(self, heads: int) -> Members:
        (q, q_scale), (k, k_scale), (v, v_scale) = self._queries
        return {
            "heads": heads, "tokens": self.tokens, "width": q.shape[-1],
            "q": q, "key": k, "q_scale": q_scale, "k_scale": k_scale, "v_scale": v_scale,
        } | program.values(v)  # fmt: skip

    def _scales(self, *names: str) -> Tensor:
        """Of the inputs of these Linears of any block: a checkpoint may group them differently from block to block."""
        found = [block.get_submodule(name) for block in self._vit.blocks for name in names]
        return _floats(self.tokens, max(map(_groups, found)))  # pyright: ignore[reportArgumentType]


def _groups(dense: IntegerDense) -> int:
    """Scales that a row of the Linear's input has."""
    group = dense.scheme.input.group
    return dense.in_features // group if group else 1


def _panels(dense: IntegerDense) -> Panels:
    stored = dense.stored
    return compiled.panels_of(stored.codes, dense.in_features, stored.multiplier, _groups(dense))


def _parameters(norm: nn.LayerNorm) -> Members:
    return {"norm_weight": norm.weight, "norm_bias": norm.bias, "eps": norm.eps}


def _quantization(to: IntegerDense, out: _Rows) -> Members:
    scheme = to.scheme.input
    grid = program.grid(scheme.bits, to.in_features, scheme.group, None)
    found = {"codes": out[0], "scales": out[1]} | grid | program.transform(to.transform)
    return found | program.prefix(scheme.prefix, out[0])


def _codes(*shape: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.empty(shape, dtype=torch.int8, device="cpu")


def _floats(*shape: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.empty(shape, dtype=torch.float32, device="cpu")
