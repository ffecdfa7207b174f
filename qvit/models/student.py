"""What a student is: a network that is trained after a teacher, whatever kind of network it is.

Anything that makes a `Seen` of images can teach; a `Student` also says which of its parameters end as integers. The
losses compare two Seen, the training step moves the parameters of a student, and neither knows a ViT from a
convolutional network:

    seen = student(images)            # images: normalised fp32 [B, C, H, W]
    seen.logits                       # every network has these
    seen.attention, seen.features     # as far as it has blocks with attention, or stages worth comparing
    student.integer_weights()         # parameters with a function from candidate values to their codes
    student.calibrate(images)         # once, before the first step: static ranges of activations

A new kind of student is a subclass with `forward` and `integer_weights`, and `calibrate` if its activations have
static ranges. Its teacher is a function or module that returns a Seen with as many blocks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn


class Attended(NamedTuple):
    """What one block's attention computed on, and its output: q, k, output [B, H, T, d], prefix tokens included.

    `output` is softmax(q k^T) v of every head in the basis of the float model, whatever rotation V is computed in;
    q and k share a rotation, which their products do not see.
    """

    q: Tensor
    k: Tensor
    output: Tensor


class Seen(NamedTuple):
    """What a network made of images.

    Attributes:
        logits: fp32 [B, classes].
        attention: Of every block, in order; empty for a network without attention.
        features: Outputs of blocks or stages, in order: [B, T, D], or [B, C, H, W] of a convolutional network.
        prefix: How many of the T tokens come before the patches.
    """

    logits: Tensor
    attention: tuple[Attended, ...] = ()
    features: tuple[Tensor, ...] = ()
    prefix: int = 0


Teacher = Callable[[Tensor], Seen]


@dataclass(frozen=True, slots=True, eq=False)
class IntegerWeight:
    """A parameter that is stored as integers.

    Attributes:
        name: As in named_parameters.
        parameter: Its float values, [N, ...]; axis 0 is the output channel.
        codes: Maps candidate values [A, N, ...] to the codes they would be stored as, whole numbers of that shape. A
            scale that follows the weights (min-max) is computed for each candidate anew.
    """

    name: str
    parameter: nn.Parameter
    codes: Callable[[Tensor], Tensor]


class Student(nn.Module):
    """A network with simulated quantization that can be trained. See the module's page."""

    def forward(self, images: Tensor) -> Seen:
        """images: normalised [B, C, H, W]."""
        raise NotImplementedError

    def integer_weights(self) -> Sequence[IntegerWeight]:
        """Every weight that ends as integers, in a fixed order."""
        raise NotImplementedError

    def calibrate(self, images: Tensor) -> None:
        """Set the static ranges of activations from a batch; a student whose ranges are dynamic has none."""
