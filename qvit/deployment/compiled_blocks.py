"""The blocks of an integer ViT as one program of the compiled path: one call for all of them, on memory of its own."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qvit.models.dense import IntegerDense
from qvit.models.vit import Block, ViT
from qvit_kernels import compiled
from qvit_kernels import compiled_program as program
from qvit_kernels.compiled_program import ACTIVATIONS, Members, Program
from qvit_kernels.reference import BlockTransform


class CompiledBlocks:
    """The residual stream through all blocks of a ViT, for one shape of it.

    Raises ValueError where the compiled path does not take the model; the message says what.
    """

    def __init__(self, vit: ViT, batch: int, tokens: int) -> None:
        _check(vit)
        self._shape = (batch, tokens, vit.config.embed_dim)
        self._stream = _floats(*self._shape)
        self._results = _Results(vit, batch, tokens)
        x, steps = self._stream, []
        for block in vit.blocks:
            x, of_block = self._results.steps(block, x)  # pyright: ignore[reportArgumentType]
            steps += of_block
        self._out = x
        self.program = Program(steps)
        self._held = list(_held(vit))

    def fits(self, x: Tensor) -> bool:
        """Whether the stream x has the shape, and no weight was replaced or written to since."""
        if tuple(x.shape) != self._shape:
            return False
        return all(place.get(name) is t and t._version == v for place, name, t, v in self._held)

    def run(self, x: Tensor) -> Tensor:
        """x: fp32 [B, T, D], as the first block reads it. Returns what the last one left, valid until the next run."""
        self._stream.copy_(x)
        self.program.run()
        return self._out


class _Results:
    """Memory that the blocks of a model write to, one after the other."""

    def __init__(self, vit: ViT, batch: int, tokens: int) -> None:
        self._rows = batch * tokens
        self._batch, self._tokens = batch, tokens
        block: Any = vit.blocks[0]
        attn, mlp = block.attn, block.mlp
        dim, inner, hidden = vit.config.embed_dim, attn.proj.in_features, mlp.fc2.in_features
        width = inner // attn.heads
        heads = (batch, attn.heads, tokens)
        self._normed = _codes(self._rows, dim), self._scales(attn.qkv)
        self._queries = [(_codes(*heads, width), _floats(*heads, 1)) for _ in range(3)]
        self._attended = _floats(self._rows, inner)
        self._projected = _codes(self._rows, inner), self._scales(attn.proj)
        self._activated = _codes(self._rows, hidden), self._scales(mlp.fc2)
        self._between, self._after = (_floats(batch, tokens, dim) for _ in range(2))

    def steps(self, block: Block, x: Tensor) -> tuple[Tensor, list[Members]]:
        """The operations of a block on the stream x: what they write to, and the steps."""
        attn, mlp = block.attn, block.mlp
        between, after = self._between, self._after
        return after, [
            self._norm(x, block.norm1, attn.qkv),
            self._qkv(block),
            self._attention(block),
            self._rows_step(self._attended, attn.proj, self._projected) | {"together": 1},
            self._linear(attn.proj, self._projected) | {"out": between, "residual": x},
            self._norm(between, block.norm2, mlp.fc1),
            self._linear(mlp.fc1, self._normed) | {"activation": ACTIVATIONS[mlp.gelu]}
            | self._quantization(mlp.fc2, self._activated),
            self._linear(mlp.fc2, self._activated) | {"out": after, "residual": between},
        ]

    def _norm(self, x: Tensor, norm: nn.LayerNorm, to: IntegerDense) -> Members:
        parameters = {"norm_weight": norm.weight, "norm_bias": norm.bias, "eps": norm.eps}
        return self._rows_step(x, to, self._normed) | parameters

    def _rows_step(self, x: Tensor, to: IntegerDense, out: tuple[Tensor, Tensor]) -> Members:
        step = {"kind": "rows", "rows": self._rows, "k": to.in_features, "x": x}
        return step | self._quantization(to, out)

    def _quantization(self, to: IntegerDense, out: tuple[Tensor, Tensor]) -> Members:
        scheme = to.scheme.input
        grid = program.grid(scheme.bits, to.in_features, scheme.group, None)
        return {"codes": out[0], "scales": out[1]} | grid | program.transform(to.transform)

    def _linear(self, dense: IntegerDense, x: tuple[Tensor, Tensor]) -> Members:
        stored = dense.stored
        panels = compiled.panels_of(stored.codes, dense.in_features, stored.multiplier, x[1].shape[-1])
        operand = program.operand(*x, self._rows)
        return {"kind": "linear", "rows": self._rows} | operand | program.weight(panels, stored.scale, dense.bias)

    def _qkv(self, block: Block) -> Members:
        attn = block.attn
        step = self._linear(attn.qkv, self._normed) | {"kind": "qkv"} | self._heads(block)
        step |= program.grid(attn.scheme.qkv.bits, step["width"], 0, None)
        if attn.norm is not None:
            names = ("norm_weight", "norm_bias", "k_weight", "k_bias", "eps")
            step |= dict(zip(names, attn.norm, strict=True)) | program.transform(attn.rotation)
        return step

    def _attention(self, block: Block) -> Members:
        attn = block.attn
        step = {"kind": "attention", "together": 1, "rows": self._batch, "out": self._attended}
        return step | self._heads(block) | compiled.softmax(attn.softmax_scale, attn.scheme.softmax_bits)

    def _heads(self, block: Block) -> Members:
        (q, q_scale), (k, k_scale), (v, v_scale) = self._queries
        return {
            "heads": block.attn.heads, "tokens": self._tokens, "width": q.shape[-1],
            "q": q, "key": k, "q_scale": q_scale, "k_scale": k_scale, "v_scale": v_scale,
        } | program.values(v)  # fmt: skip

    def _scales(self, dense: IntegerDense) -> Tensor:
        group = dense.scheme.input.group
        return _floats(self._rows, dense.in_features // group if group else 1)


def _check(vit: ViT) -> None:
    """ValueError for a model that is not made of multiples of 16, powers of two and an fp32 stream."""
    if vit.residual_dtype != torch.float32:
        raise ValueError(f"its residual stream is {vit.residual_dtype}, and must be torch.float32")
    if not len(vit.blocks):
        raise ValueError("it has no blocks")
    for block in vit.blocks:
        attn: Any = block.attn
        width = attn.proj.in_features // attn.heads
        if width % 16 or width > 256:
            raise ValueError(f"its heads have {width} channels: no multiple of 16, or more than 256")
        for transform in (attn.rotation, *(dense.transform for dense in block.linears())):  # pyright: ignore
            _check_block(transform)
        for dense in block.linears():  # pyright: ignore
            group = dense.scheme.input.group
            if dense.in_features % 16 or group % 16:
                raise ValueError(f"{dense.in_features} channels in groups of {group}: no multiples of 16")


def _check_block(transform: BlockTransform | None) -> None:
    if transform is not None and transform.block & (transform.block - 1):
        raise ValueError(f"a transform of {transform.block} channels, which is no power of two")


def _held(vit: ViT) -> Iterator[tuple[dict[str, Any], str, Tensor, int]]:
    """Every tensor of the blocks: where it is found, and how often it was written to.

    Scales and biases are read where they lie, so a write to them needs no new program; the packed weights do.
    """
    for module in vit.blocks.modules():
        for place in (module._parameters, module._buffers):
            for name, tensor in place.items():
                if tensor is not None:
                    yield place, name, tensor, tensor._version


def _codes(*shape: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.empty(shape, dtype=torch.int8)


def _floats(*shape: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.empty(shape, dtype=torch.float32)
