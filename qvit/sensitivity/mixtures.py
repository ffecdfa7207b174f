"""One model in low bits and one in eight, of which every layer can be taken from either."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from qvit.models.calibration import set_weight_ranges
from qvit.models.folding import fold
from qvit.models.plan import plan_scheme
from qvit.models.simulated import Simulated
from qvit.models.vit import Attention, ViT
from qvit.recipe import Recipe, keep_wide


class Mixtures:
    """A float ViT under a recipe's scheme, and under the same scheme with 8 bits in every layer.

    A layer is a Linear, or the two products of an attention ("blocks.0.attn"); `names` are those of fewer than 8 bits.
    Transforms and their signs are the same in both models, so that their layers can be exchanged. Every weight is at
    its nearest code: rounding for images would take as long again for each layer.
    """

    def __init__(self, vit: ViT, recipe: Recipe) -> None:
        recipe = recipe.without_images()
        attentions = [f"blocks.{index}.attn" for index in range(vit.config.depth)]
        self.low = _simulate(vit, recipe)
        self.wide = _simulate(vit, _widened(recipe, (*vit.config.linears(), *attentions)))
        low, wide = (model.get_submodule for model in (self.low, self.wide))
        layers = (*vit.config.linears(), *attentions)
        self.names = tuple(name for name in layers if low(name).scheme != wide(name).scheme)

    def logits(
        self, base: ViT, names: Sequence[str], streams: Sequence[Tensor], first: int
    ) -> Tensor:
        """Logits fp32 [B, classes] of `base` with these layers of the other model, from the block `first` on.

        streams: What enters each block of `base`, and what leaves the last, for the images in question.
        """
        with self._exchanged(base, names):
            run, x = Simulated(), streams[first]
            for block in base.blocks[first:]:
                x = block(x, run)
            return base.classify(x, run)

    def logits_of(self, base: ViT, names: Sequence[str], images: Tensor) -> Tensor:
        """The same from images [B, C, H, W] on."""
        with self._exchanged(base, names):
            return base(images, Simulated())

    @contextmanager
    def _exchanged(self, base: ViT, names: Sequence[str]) -> Iterator[None]:
        other = self.low if base is self.wide else self.wide
        self._exchange(base, other, names)
        try:
            yield
        finally:
            self._exchange(base, other, names)

    @staticmethod
    def _exchange(base: ViT, other: ViT, names: Sequence[str]) -> None:
        for name in names:
            place, _, leaf = name.rpartition(".")
            if isinstance(
                base.get_submodule(name), Attention
            ):  # its Linears are layers of their own
                place, leaf = name, "scheme"
            here, there = base.get_submodule(place), other.get_submodule(place)
            mine, theirs = getattr(here, leaf), getattr(there, leaf)
            setattr(here, leaf, theirs)
            setattr(there, leaf, mine)


def streams_of(vit: ViT, images: Tensor) -> list[Tensor]:
    """What enters each block, and what leaves the last: [B, T, D] each."""
    run = Simulated()
    streams = [vit.begin(images, run)]
    for block in vit.blocks:
        streams.append(block(streams[-1], run))
    return streams


def block_of(name: str) -> int | None:
    """The block that a layer is in; None for the patch embedding and the head."""
    return int(name.split(".")[1]) if name.startswith("blocks.") else None


def _simulate(vit: ViT, recipe: Recipe) -> ViT:
    with torch.no_grad():
        folded = fold(vit, plan_scheme(vit.config, recipe), seed=recipe.seed)
        return set_weight_ranges(folded, recipe.weights.range).requires_grad_(False)


def _widened(recipe: Recipe, names: Sequence[str]) -> Recipe:
    """8 bits in the layers of these names, as `quantize --exclude` gives them."""
    return dataclasses.replace(recipe, layers={**recipe.layers, **dict(map(keep_wide, names))})
