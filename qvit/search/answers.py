"""What a model answers at any allocation: by the compiled CPU path where there is one, twenty times as fast."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from qvit.deployment import cpu_preparation
from qvit.deployment.conversion import to_integers
from qvit.deployment.quantvit import QuantViT
from qvit.models.config import ViTConfig
from qvit.models.fake_quantized import FakeQuantized
from qvit.models.plan import plan_scheme
from qvit.models.switching import SwitchableModel
from qvit.models.vit import ViT
from qvit.recipe import MAX_BITS
from qvit.search.allocation import Space

# Images at a time without the compiled path: a ViT-Tiny takes 0.13 s an image by 8, 0.17 by 32.
_PART = 8


class Answers:
    """Images and an allocation to logits, weights at their nearest codes.

    Where the processor has no compiled path the execution to train by answers: it has the grids of the simulated one,
    and takes 0.6 of its time. Between the two a value that is nearly a tie may round otherwise.
    """

    def __init__(self, model: SwitchableModel, config: ViTConfig, space: Space) -> None:
        self._model, self._config, self._space = model, config, space
        self._compiled: bool | None = None  # not known before there is a model

    @torch.no_grad()
    def __call__(self, images: Tensor, bits: Tensor | Sequence[int]) -> Tensor:
        """images: normalised fp32 [N, C, H, W]; bits: int64 [choices]. Returns fp32 [N, classes]."""
        integer = self._integer(bits)
        if integer is not None:
            return QuantViT(integer, {}, backend="cpu")(images)
        parts = [self._model.vit(some, FakeQuantized()) for some in images.split(_PART)]
        return torch.cat(parts)

    @property
    def fast(self) -> bool:
        """Whether the compiled path answers."""
        if self._compiled is None:
            self._integer(self._space.uniform(MAX_BITS))
        return bool(self._compiled)

    def _integer(self, bits: Tensor | Sequence[int]) -> ViT | None:
        """The model at these bits, for the compiled path; None where there is none, and `model` has them alone."""
        scheme = plan_scheme(self._config, self._space.recipe_of(bits))
        self._model.take(scheme)
        if self._compiled is False:
            return None
        integer = to_integers(self._model.vit, scheme)
        if self._compiled is None:
            with warnings.catch_warnings():  # of a machine without
                warnings.simplefilter("ignore", RuntimeWarning)
                self._compiled = cpu_preparation.prepare(integer) is None
        return integer if self._compiled else None
