"""Executions that keep what every block's attention saw and what every block handed on, as a Seen.

The values come from the project's own block, so there is no hook that could silently see nothing.
"""

from typing import Any

import torch
from torch import Tensor

from qvit.models.fake_quantized import FakeQuantized, HeadValues
from qvit.models.floating import Float
from qvit.models.simulated import Simulated
from qvit.models.static import Static
from qvit.models.student import Attended, Seen
from qvit.models.vit import Attention, ViT
from qvit_kernels.reference import Quantized


class Watching:
    """Mixed into an execution with `attend`. One instance watches one pass."""

    def __init__(self) -> None:
        self.attended: list[Attended] = []
        self.streams: list[Tensor] = []

    def attend(self, q: Any, k: Any, v: Any, attn: Attention) -> Tensor:
        """See Static.attend; the output is kept in the basis of the float model."""
        found = super().attend(q, k, v, attn)  # pyright: ignore[reportAttributeAccessIssue]
        heads = found.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        basis = attn.value_basis
        kept = heads if basis is None else heads.float() @ basis
        self.attended.append(Attended(_value(q), _value(k), kept))
        return found

    def residual(self, x: Tensor, h: Any, dense: Any) -> Tensor:
        """See Execution."""
        found = super().residual(x, h, dense)  # pyright: ignore[reportAttributeAccessIssue]
        self.streams.append(found)
        return found

    def seen(self, logits: Tensor, prefix: int) -> Seen:
        """What the pass showed. A block adds to the residual stream twice; the second time it is done."""
        return Seen(logits.float(), tuple(self.attended), tuple(self.streams[1::2]), prefix)


class WatchedFloat(Watching, Float):
    """Float, watched."""


class WatchedSimulated(Watching, Simulated):
    """Simulated, watched."""


class WatchedFakeQuantized(Watching, FakeQuantized):
    """FakeQuantized, watched."""


class WatchedStatic(Watching, Static):
    """Static, watched."""


def watch(vit: ViT, images: Tensor, run: Watching) -> Seen:
    """One pass of images [B, C, H, W] through a model, under a fresh watched execution."""
    logits = vit(images, run)  # pyright: ignore[reportArgumentType] - it is mixed into an execution
    return run.seen(logits, vit.config.num_prefix_tokens)


class FloatTeacher:
    """A float ViT as a Teacher: its parameters are left alone."""

    def __init__(self, vit: ViT) -> None:
        self.vit = vit

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Seen:
        """images: normalised [B, C, H, W]."""
        return watch(self.vit, images, WatchedFloat())


def _value(x: Tensor | Quantized | HeadValues) -> Tensor:
    if isinstance(x, HeadValues):
        return x.values
    return x.codes * x.scale if isinstance(x, Quantized) else x
