"""Cards whose latency is modelled: rates from data sheets, instructions counted of compiled kernels.

A launch takes its instructions at the rate of the schedulers, its products at that of the tensor cores, or its bytes at
that of memory, whichever takes longest, and what starting it costs. Programs are dealt out evenly, so that the fullest
multiprocessor decides. What is left out makes real launches slower: waiting for memory within a program, clocks below
the boost, caches that hold nothing yet. Nothing here was timed on a card.
"""

import math
from dataclasses import dataclass

from qvit.deployment.foresight import Work, foresee
from qvit.errors import UsageError
from qvit.models.config import ViTConfig
from qvit.quant.schemes import ModelScheme

_SCHEDULERS = 4  # of a multiprocessor, each an instruction of a warp a cycle
# Between launches of a CUDA graph: an assumption. It is in every allocation alike.
_LAUNCH_SECONDS = 1.5e-6


@dataclass(frozen=True, slots=True)
class Card:
    """capability: 90 for 9.0. processors: Multiprocessors. clock: Hz, boost. operations: int8 multiplications and
    additions of tensor cores, a multiprocessor and cycle. bandwidth: Of memory, bytes a second.
    """

    capability: int
    processors: int
    clock: float
    operations: int
    bandwidth: float


CARDS = {
    "nvidia-a100": Card(80, 108, 1.41e9, 4096, 2.04e12),
    "nvidia-l4": Card(89, 58, 2.04e9, 2048, 0.30e12),
    "nvidia-rtx-4090": Card(89, 128, 2.52e9, 2048, 1.01e12),
    "nvidia-h100": Card(90, 132, 1.83e9, 8192, 3.35e12),
    "nvidia-h200": Card(90, 132, 1.83e9, 8192, 4.8e12),
    "nvidia-b200": Card(100, 148, 1.85e9, 16384, 8.0e12),
}


def find_card(name: str) -> Card:
    """By its name. Raises UsageError for one that is not known, with those that are."""
    try:
        return CARDS[name]
    except KeyError:
        raise UsageError(f"--on {name}: latency is modelled for {', '.join(CARDS)}") from None


def model_seconds(
    config: ViTConfig, scheme: ModelScheme, batch: int, card: Card
) -> dict[str, float]:
    """Modelled seconds of the launches of every layer of a pass."""
    return {
        layer: sum(_seconds(work, card) for work in works)
        for layer, works in foresee(config, scheme, batch, card.capability).items()
    }


def _seconds(work: Work, card: Card) -> float:
    # the fullest multiprocessor: so many of the programs, of which all are alike
    share = math.ceil(work.programs / card.processors) / work.programs
    issued = work.instructions * share / _SCHEDULERS
    multiplied = 2 * work.macs * share / card.operations
    return _LAUNCH_SECONDS + max(max(issued, multiplied) / card.clock, work.bytes / card.bandwidth)
