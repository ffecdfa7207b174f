"""Tracking: static ranges that still follow what they see, until they are frozen."""

from torch import nn


def track_ranges(module: nn.Module, on: bool) -> None:
    """Switch every quantizer inside that has a `tracking` flag."""
    for part in module.modules():
        if isinstance(getattr(part, "tracking", None), bool):
            part.__dict__["tracking"] = on
