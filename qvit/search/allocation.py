"""An allocation of bits: which layers may have how many, and the recipe that gives them theirs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qvit.errors import UsageError
from qvit.models.config import ViTConfig
from qvit.recipe import ENDS, MAX_BITS, MIN_BITS, Bits, Recipe, find_bits
from qvit.search.bitops import PATCHES

WIDTHS = tuple(range(MIN_BITS, MAX_BITS + 1))


@dataclass(frozen=True, slots=True)
class Choice:
    """One number of bits that is to be found: of the weights ("W") or the input ("A") of a layer; of an attention, of
    Q, K, V and the softmax numerators ("A").

    head: Which of the slices of the weights that belong to heads it is; None: it is all of them.
    """

    layer: str
    kind: str
    head: int | None = None

    @property
    def key(self) -> tuple[str, str] | tuple[str, str, int]:
        """What its losses are called (models/curvature.py)."""
        kind = self.layer, self.kind
        return kind if self.head is None else (*kind, self.head)


@dataclass(frozen=True, slots=True)
class Space:
    """What is to be found, in order; an allocation is int64 [len(choices)], bits. Other layers keep the recipe's."""

    recipe: Recipe
    choices: tuple[Choice, ...]

    @classmethod
    def of(
        cls,
        config: ViTConfig,
        recipe: Recipe,
        *,
        weights: bool = True,
        activations: bool = True,
        heads: bool = False,
    ) -> "Space":
        """All choices of a model that its recipe's `layers` leave open; only those of weights, or of activations, where
        the others are settled; of weights those of every attention head, or of whole layers, as searches have them
        unless asked: with bits of heads KL of three-bit models was larger (benchmarks/README.md). Raises UsageError
        where none is left.
        """
        attentions = [f"blocks.{i}.attn" for i in range(config.depth)]
        choices = []
        for name in [*config.linears(), *attentions]:
            settled = find_bits(recipe.layers, name)
            if weights and name not in attentions and settled.weights is None:
                slices = math.prod(config.head_slices(name)) if heads else 1
                parts = range(slices) if slices > 1 else [None]
                choices += [Choice(name, "W", part) for part in parts]
            if activations and name != PATCHES and settled.activations is None:
                choices.append(Choice(name, "A"))
        if not choices:
            both = "weights and activations" if weights and activations else "weights"
            raise UsageError(
                f"no bits are left to find: the recipe's layers give those of all {both}; leave out some of them, or "
                "quantize without a search"
            )
        return cls(recipe, tuple(choices))

    @property
    def heads(self) -> bool:
        """Whether weights of heads are choices of their own."""
        return any(choice.head is not None for choice in self.choices)

    def uniform(self, bits: int) -> Tensor:
        """The allocation that gives everything the same bits."""
        return torch.full((len(self.choices),), bits, dtype=torch.int64)

    def usual(self, bits: int) -> Tensor:
        """The allocation that presets have: these bits in the Linears of blocks, eight at both ends of the model, and
        the recipe's own in the attention products.
        """
        own = [bits if c.layer not in ENDS else MAX_BITS for c in self.choices]
        products = [self.recipe.attention_bits(c.layer)[0] for c in self.choices]
        attention = [c.layer.endswith(".attn") for c in self.choices]
        return torch.where(torch.tensor(attention), torch.tensor(products), torch.tensor(own))

    def plain(self) -> list[Tensor]:
        """Allocations that need no search, from many bits to few: what presets have, and the same bits everywhere."""
        return [make(bits) for bits in reversed(WIDTHS) for make in (self.usual, self.uniform)]

    def widest(self, bits: Tensor | Sequence[int]) -> list[int]:
        """The allocation in which all heads of a layer have the most bits of any."""
        kinds = [(choice.layer, choice.kind) for choice in self.choices]
        most: dict[tuple[str, str], int] = {}
        for kind, width in zip(kinds, map(int, bits), strict=True):
            most[kind] = max(width, most.get(kind, width))
        return [most[kind] for kind in kinds]

    def layers(self, bits: Tensor | Sequence[int]) -> dict[str, str]:
        """What a recipe's `layers` say for an allocation: {"blocks.0.mlp.fc2": "W3A5", ...}; what this recipe's said of
        the same layers is in there, too.
        """
        found: dict[str, dict[str, list[int]]] = {}
        for choice, width in zip(self.choices, map(int, bits), strict=True):
            found.setdefault(choice.layer, {}).setdefault(choice.kind, []).append(width)
        return {name: str(self._bits(name, kinds)) for name, kinds in found.items()}

    def _bits(self, name: str, kinds: Mapping[str, Sequence[int]]) -> Bits:
        """Of a layer with these, by kind: of weights those of every head, or one number where all are alike."""
        settled = find_bits(self.recipe.layers, name)
        return Bits(
            _alike(kinds["W"]) if "W" in kinds else settled.weights,
            kinds["A"][0] if "A" in kinds else settled.activations,
        )

    def recipe_of(self, bits: Tensor | Sequence[int]) -> Recipe:
        """The recipe with an allocation's bits."""
        found = self.layers(bits)
        # at the end, where no pattern before them has its way
        kept = {name: text for name, text in self.recipe.layers.items() if name not in found}
        return replace(self.recipe, layers=kept | found)


def _alike(bits: Sequence[int]) -> tuple[int, ...]:
    """One number for all of them, where it is."""
    return tuple(bits) if len(set(bits)) > 1 else (bits[0],)
