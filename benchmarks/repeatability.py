"""How far two reports of `qvit bench` agree, of the same model on the same machine, one after the other.

    python benchmarks/repeatability.py first.json second.json

Every speed-up in both is held against itself: over each float variant and over the fastest. A report says of each ratio
whether another run may be expected within 5 % ("steady"); what it says so of must be. Exits with 1 where it is not, or
nothing is.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Of a ratio that both reports call steady; the bound that `qvit bench` promises.
ALLOWED = 0.05


@dataclass(frozen=True, slots=True)
class Pair:
    """One ratio in two reports: how many times as fast `variant` is as `baseline` at a batch size."""

    variant: str
    batch: int
    baseline: str
    first: float
    second: float
    steady: bool  # in both

    @property
    def disagreement(self) -> float:
        """The share by which the larger one is above the smaller."""
        return max(self.first, self.second) / min(self.first, self.second) - 1

    @property
    def broken(self) -> bool:
        """Whether it was called steady, and was not."""
        return self.steady and self.disagreement > ALLOWED

    def __str__(self) -> str:
        return (
            f"{self.variant} over {self.baseline}, batch {self.batch}: {self.first:.3f} and {self.second:.3f}, "
            f"{100 * self.disagreement:.1f} % apart"
        )


def pair_ratios(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Pair]:
    """Every ratio that both reports have. Raises ValueError where they are of different models or machines."""
    for what in ("resolved_name", "scheme", "device", "machine"):
        if first[what] != second[what]:
            raise ValueError(f"the reports differ in {what}: {first[what]} and {second[what]}")
    earlier = {(row["variant"], row["batch"]): row["speedup_vs"] for row in first["rows"]}
    pairs = []
    for row in second["rows"]:
        before = earlier.get((row["variant"], row["batch"]), {})
        for baseline, now in row["speedup_vs"].items():
            if baseline in before:
                then = before[baseline]
                steady = then["steady"] and now["steady"]
                names = row["variant"], row["batch"], baseline
                pairs.append(Pair(*names, then["ratio"], now["ratio"], steady))
    return pairs


def describe(pairs: Sequence[Pair]) -> str:
    """How many are steady and agree, the worst of each kind, and every one that broke its word."""
    lines = []
    for kind, chosen in (
        ("called steady by both", [pair for pair in pairs if pair.steady]),
        ("called unsteady by at least one", [pair for pair in pairs if not pair.steady]),
    ):
        within = sum(pair.disagreement <= ALLOWED for pair in chosen)
        lines.append(f"{len(chosen)} ratios {kind}: {within} within {100 * ALLOWED:.0f} %")
        if chosen:
            lines.append(f"  worst: {max(chosen, key=lambda pair: pair.disagreement)}")
    lines += [f"BROKEN {pair}" for pair in pairs if pair.broken]
    return "\n".join(lines)


def main(files: Sequence[str]) -> int:
    """Print the comparison; the exit code."""
    if len(files) != 2:
        print("expected two reports: first.json second.json", file=sys.stderr)
        return 2
    first, second = (json.loads(Path(name).read_text(encoding="utf-8")) for name in files)
    try:
        pairs = pair_ratios(first, second)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(describe(pairs))
    if not any(pair.steady for pair in pairs):
        print("nothing is called steady by both, so nothing is shown")
        return 1
    return 1 if any(pair.broken for pair in pairs) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
