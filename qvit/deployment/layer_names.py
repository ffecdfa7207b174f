"""Names of layers that differ only in their block, as one."""

from collections.abc import Iterable, Sequence


def shorten(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """blocks.0.attn.qkv, blocks.1.attn.qkv, ... as one: blocks.*.attn.qkv, or blocks.0-1,4.attn.qkv where `known`, the
    names of the whole model, have others of its kind.
    """
    wanted, all_of_them = _by_kind(names), _by_kind(known)
    return [
        kind.replace("*", "*" if found == all_of_them.get(kind) else _ranges(found))
        for kind, found in wanted.items()
    ]


def without_block(name: str) -> str:
    """blocks.*.attn.qkv of blocks.3.attn.qkv."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _by_kind(names: Iterable[str]) -> dict[str, list[int]]:
    kinds: dict[str, set[int]] = {}
    for name in names:
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        kinds.setdefault(without_block(name), set()).update(numbers)
    return {kind: sorted(numbers) for kind, numbers in kinds.items()}


def _ranges(numbers: Sequence[int]) -> str:
    """0-2,5 of sorted 0, 1, 2, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
