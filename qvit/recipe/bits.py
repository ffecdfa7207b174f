"""How many bits there may be, and those of single layers: `blocks.*.mlp.fc2: W4A8` in a recipe, or of the heads of an
attention: `blocks.0.attn.proj: W4,3,4A4`.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from qvit.errors import UsageError

MIN_BITS, MAX_BITS = 2, 8
MAX_GROUPED_BITS = 4  # the product of a code and its group's multiplier has to fit in 8 bits

_BITS = re.compile(r"(?:W(\d+(?:,\d+)*))?\s*(?:A(\d+))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Bits:
    """What a recipe says of a layer. weights, activations: None where that is left to the rest of the recipe.

    weights: Of the slices that belong to attention heads, in order, or one number for all.
    """

    weights: tuple[int, ...] | None = None
    activations: int | None = None

    def __str__(self) -> str:
        """As `read_bits` reads it: "W4A8", "W4,4,3A4", "A8"."""
        weights = "" if self.weights is None else f"W{','.join(map(str, self.weights))}"
        return weights + ("" if self.activations is None else f"A{self.activations}")


def check_bits(name: str, bits: int) -> None:
    """Raises UsageError for a number of bits that nothing is stored in."""
    if not MIN_BITS <= bits <= MAX_BITS:
        raise UsageError(
            f"{name} = {bits}: qvit stores and computes {MIN_BITS} to {MAX_BITS} bits; "
            "use --w and --a within that range"
        )


def read_bits(pattern: str, text: object) -> Bits:
    """Of "W4A8", "W4", "A8" or, of heads, "W4,4,3A4"; pattern: of the layers, for the message. Raises UsageError for
    anything else.
    """
    found = _BITS.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None or not any(found.groups()):
        raise UsageError(
            f"layers.{pattern} = {text!r}: expected bits such as W4A8, W4, A8 or, of attention heads, W4,4,3A4"
        )
    weights, activations = ([int(d) for d in t.split(",")] if t else [] for t in found.groups())
    for bits in (*weights, *activations):
        check_bits(f"layers.{pattern}", bits)
    return Bits(tuple(weights) or None, activations[0] if activations else None)


def find_bits(layers: Mapping[str, str], name: str) -> Bits:
    """What a recipe's `layers` say of one layer: of two patterns that match, the later one has its way."""
    weights = activations = None
    for pattern, text in layers.items():
        if matches(pattern, name):
            bits = read_bits(pattern, text)
            weights = weights if bits.weights is None else bits.weights
            activations = activations if bits.activations is None else bits.activations
    return Bits(weights, activations)


def keep_wide(pattern: str) -> tuple[str, str]:
    """The entry of a recipe's `layers` that keeps layers of this name at 8 bits; attention products have no weights."""
    attention = pattern.rpartition(".")[2] == "attn"
    return pattern, f"A{MAX_BITS}" if attention else f"W{MAX_BITS}A{MAX_BITS}"


def check_matches(layers: Mapping[str, str], names: Iterable[str]) -> None:
    """Raises UsageError for a pattern that matches none of a model's layers, with the nearest names."""
    names = list(names)
    for pattern in layers:
        if any(matches(pattern, name) for name in names):
            continue
        known = list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names))
        near = difflib.get_close_matches(pattern, [*known, *names], n=3, cutoff=0.5)
        raise UsageError(
            f"layers.{pattern} matches no layer of this model; "
            f"{'the nearest are' if near else 'it has'} {', '.join(near or known)}"
        )


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern means a layer: part by part between the dots, so that `blocks.*.attn` is none of the Linears in
    there.
    """
    patterns, parts = pattern.split("."), name.split(".")
    return len(patterns) == len(parts) and all(map(fnmatchcase, parts, patterns))
