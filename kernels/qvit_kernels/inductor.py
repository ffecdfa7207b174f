"""What Inductor has to be told of our ops, once it is loaded; it is not loaded for that."""

import sys
from collections.abc import Iterable


def announce(ops: Iterable[str]) -> None:
    """Name ops ("qvit::linear") that Inductor shall call as they are, which it would find out of itself.

    But torch 2.11 writes out first all that led to an op that it meets for the first time, read or not: for the head of
    a ViT a text that doubles with every residual, and never ends. Later versions do so when somebody reads it.
    """
    known = getattr(sys.modules.get("torch._inductor.lowering"), "FALLBACK_ALLOW_LIST", None)
    if known is not None:
        known.update(ops)
