"""An integer ViT on the compiled path: a batch of images to logits, or to tokens, by one call."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from qvit.deployment.compiled_memory import (
    BLOCK_STEPS,
    EMBEDDING_STEPS,
    HEAD_STEPS,
    ImageMemory,
    pack_weights,
    place_nothing,
)
from qvit.models.vit import ViT
from qvit_kernels.compiled_program import Program

# Which module, of the model or of its block, a step is taken for.
_MODULES = {
    "pixels": "patch_embed.proj", "patch_embed": "patch_embed.proj", "norm1": "norm1", "qkv": "attn.qkv",
    "attention": "attn", "quantize": "attn", "proj": "attn.proj", "norm2": "norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2",
    "norm": "norm", "head": "head",
}  # fmt: skip


class CompiledViT:
    """The programs of a ViT with its present parameters and image size. Not for two callers at a time.

    threads: how many may take images of a batch alone. Raises ValueError where the compiled path does not take the
    model; the message says what.
    """

    def __init__(self, vit: ViT, threads: int) -> None:
        _check(vit)
        pack_weights(vit)
        memories, empty = [ImageMemory(vit) for _ in range(threads)], place_nothing(vit)
        self._shape = (memories[0].tokens, vit.config.embed_dim)
        self._classes = vit.config.num_classes
        self._depth = len(vit.blocks)
        self._features = Program(*(m.embedding(empty) + m.blocks() for m in memories))
        self._features.stride(-1, out_image=self._shape[0] * self._shape[1] * 4)
        self._logits = None
        if _ends_simply(vit):
            self._logits = Program(*(m.embedding(empty) + m.blocks() + m.head() for m in memories))
        self._config = vit.config  # not the model: it is what these programs are kept by
        self._modules = list(_modules(vit))
        self._tensors = list(_tensors(vit))
        # aliases: what a parameter held is not freed, nor its address given to another, while steps have that address
        self._kept = [tensor.detach() for _, _, tensor, _, _ in self._tensors]

    def fits(self, vit: ViT, threads: int) -> bool:
        """Whether it has memory for so many threads, and the model is as it was: no module or parameter was replaced,
        none written to, none has other memory (as after `tensor.data = ...` and `share_memory_()`).
        """
        if threads > self._features.threads or vit.config is not self._config:
            return False
        if any(place.get(name) is not module for place, name, module in self._modules):
            return False
        # a loop and not a generator, which takes twice as long: 30 us for DeiT-S, of 2 ms that a pass of ViT-T takes
        for place, name, tensor, writes, address in self._tensors:
            if place.get(name) is not tensor or tensor._version != writes:
                return False
            if tensor.data_ptr() != address:
                return False
        return True

    def features(self, images: Tensor) -> Tensor:
        """images: fp32 [B, C, H, W], contiguous. Returns what the last block leaves, fp32 [B, T, D]."""
        out = self._point(self._features, images)
        self._features.run(images.shape[0])
        return out

    def logits(self, images: Tensor) -> Tensor | None:
        """images: fp32 [B, C, H, W], contiguous. Returns fp32 [B, classes]; None where the head is more than a norm and
        a Linear of the first token.
        """
        if self._logits is None:
            return None
        out = self._point(self._logits, images)
        self._logits.run(images.shape[0])
        return out

    def time(self, images: Tensor) -> list[tuple[str, float]]:
        """The steps of a pass over images, in order: what each is, and its seconds an image. They end with the last
        block where `logits` does.
        """
        program = self._logits or self._features
        _kept = self._point(program, images)
        names = [*EMBEDDING_STEPS, *BLOCK_STEPS * self._depth, *self._head_steps]
        return list(zip(names, program.time(images.shape[0]), strict=True))

    def time_layers(self, images: Tensor) -> list[tuple[str, float]]:
        """The same by the names of modules: "blocks.0.attn.qkv"; softmax attention is "blocks.0.attn"."""
        names = [_MODULES[step] for step in EMBEDDING_STEPS]
        for index in range(self._depth):
            names += [f"blocks.{index}.{_MODULES[step]}" for step in BLOCK_STEPS]
        names += [_MODULES[step] for step in self._head_steps]
        return [(name, taken) for name, (_, taken) in zip(names, self.time(images), strict=True)]

    @property
    def threads(self) -> int:
        """How many threads may take images of a batch alone."""
        return self._features.threads

    @property
    def _head_steps(self) -> tuple[str, ...]:
        return () if self._logits is None else HEAD_STEPS

    def _point(self, program: Program, images: Tensor) -> Tensor:
        """Let a program read images, and write to memory of its own, which is returned."""
        shape = self._shape if program is self._features else (self._classes,)
        out = torch.empty((images.shape[0], *shape), dtype=torch.float32, device="cpu")
        program.point(0, x=images)
        program.point(-1, out=out)
        return out


def _ends_simply(vit: ViT) -> bool:
    """Whether logits are a norm and a Linear of the first token."""
    config = vit.config
    return (
        config.global_pool == "token"
        and not config.dist_token
        and vit.head is not None
        and vit.norm is not None
        and vit.fc_norm is None
    )


def _check(vit: ViT) -> None:
    """ValueError for a model that is not made of multiples of 16, powers of two and an fp32 stream."""
    config = vit.config
    _check_tensors(vit)
    if vit.residual_dtype != torch.float32:
        raise ValueError(f"its residual stream is {vit.residual_dtype}, and must be torch.float32")
    if vit.norm_pre is not None or not len(vit.blocks):
        raise ValueError("it has a norm before the first block, or no block")
    if config.head_dim % 16 or config.head_dim > 256:
        raise ValueError(
            f"its heads have {config.head_dim} channels: no multiple of 16, or too many"
        )
    blocks: Any = vit.blocks
    heads = [] if vit.head is None else [vit.head]
    for dense in [dense for block in blocks for dense in block.linears()] + heads:
        scheme = dense.scheme
        sizes = (dense.in_features, scheme.input.group)
        if any(size % 16 for size in sizes) or scheme.transform & (scheme.transform - 1):
            raise ValueError(
                f"a Linear takes {sizes[0]} channels in groups of {sizes[1]} and transforms of {scheme.transform}: "
                "they must be multiples of 16 and powers of two"
            )
    for block in blocks:
        rotation = block.attn.rotation
        if rotation is not None and rotation.block & (rotation.block - 1):
            raise ValueError(
                f"it rotates heads of {rotation.block} channels, which is no power of two"
            )


def _check_tensors(vit: ViT) -> None:
    """ValueError for parameters that are not what their addresses are taken for."""
    for name, tensor in (*vit.named_parameters(), *vit.named_buffers()):
        if tensor.is_inference():
            raise ValueError(
                "it was loaded under torch.inference_mode(), where writes to a weight cannot be noticed"
            )
        odd = tensor.is_floating_point() and tensor.dtype != torch.float32
        if odd or not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise ValueError(
                f"its {name} is not contiguous memory of the processor, floats in fp32"
            )


def _modules(vit: ViT) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Every module, and where it is found."""
    for module in vit.modules():
        for name, child in module._modules.items():
            if child is not None:
                yield module._modules, name, child


def _tensors(vit: ViT) -> Iterator[tuple[dict[str, Any], str, Tensor, int, int]]:
    """Every parameter and buffer: where it is found, how often it was written to, its address.

    Steps hold addresses, and weights and positions are copied into another form.
    """
    for module in vit.modules():
        for place in (module._parameters, module._buffers):
            for name, tensor in place.items():
                if tensor is not None:
                    yield place, name, tensor, tensor._version, tensor.data_ptr()
