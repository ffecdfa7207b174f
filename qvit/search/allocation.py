"""An allocation of bits: which layers may have how many, and the recipe that gives them theirs."""

from collections.abc import Sequence
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
    """

    layer: str
    kind: str


@dataclass(frozen=True, slots=True)
class Space:
    """What is to be found, in order; an allocation is int64 [len(choices)], bits. Other layers keep the recipe's."""

    recipe: Recipe
    choices: tuple[Choice, ...]

    @classmethod
    def of(
        cls, config: ViTConfig, recipe: Recipe, *, weights: bool = True, activations: bool = True
    ) -> "Space":
        """All choices of a model that its recipe's `layers` leave open; only those of weights, or of activations, where
        the others are settled. Raises UsageError where none is left.
        """
        attentions = [f"blocks.{i}.attn" for i in range(config.depth)]
        choices = []
        for name in [*config.linears(), *attentions]:
            settled = find_bits(recipe.layers, name)
            if weights and name not in attentions and settled.weights is None:
                choices.append(Choice(name, "W"))
            if activations and name != PATCHES and settled.activations is None:
                choices.append(Choice(name, "A"))
        if not choices:
            both = "weights and activations" if weights and activations else "weights"
            raise UsageError(
                f"no bits are left to find: the recipe's layers give those of all {both}; leave out some of them, or "
                "quantize without a search"
            )
        return cls(recipe, tuple(choices))

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

    def layers(self, bits: Tensor | Sequence[int]) -> dict[str, str]:
        """What a recipe's `layers` say for an allocation: {"blocks.0.mlp.fc2": "W3A5", ...}; what this recipe's said of
        the same layers is in there, too.
        """
        found: dict[str, Bits] = {}
        for choice, width in zip(self.choices, map(int, bits), strict=True):
            if choice.layer not in found:
                found[choice.layer] = find_bits(self.recipe.layers, choice.layer)
            change = {"weights": (width,)} if choice.kind == "W" else {"activations": width}
            found[choice.layer] = replace(found[choice.layer], **change)
        return {name: str(bits) for name, bits in found.items()}

    def recipe_of(self, bits: Tensor | Sequence[int]) -> Recipe:
        """The recipe with an allocation's bits."""
        found = self.layers(bits)
        # at the end, where no pattern before them has its way
        kept = {name: text for name, text in self.recipe.layers.items() if name not in found}
        return replace(self.recipe, layers=kept | found)
