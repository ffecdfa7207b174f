"""Static ranges while a student is trained: some follow what they see until they are frozen, and what they see may be
spread over processes.
"""

from typing import Protocol

from torch import Tensor, nn


class Company(Protocol):
    """The processes that every batch is spread over, each with as many of its images."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def highest(self, values: Tensor) -> None:
        """Replace each value by the largest that a process has, in place. All of them have to call it."""


def track_ranges(module: nn.Module, on: bool) -> None:
    """Switch every quantizer inside that has a `tracking` flag."""
    for part in module.modules():
        if isinstance(getattr(part, "tracking", None), bool):
            part.__dict__["tracking"] = on


def share_batches(module: nn.Module, company: Company) -> None:
    """Tell every quantizer inside that has a `company` with whom it shares the batches that it is trained on."""
    for part in module.modules():
        if hasattr(part, "company"):
            part.__dict__["company"] = company
