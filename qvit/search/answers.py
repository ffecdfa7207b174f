"""What a model answers at any allocation: by the compiled CPU path where there is one, twenty times as fast."""

import warnings
from functools import cached_property, partial

import torch
from torch import Tensor

from qvit.deployment import cpu_preparation
from qvit.deployment.conversion import to_integers
from qvit.deployment.quantvit import QuantViT
from qvit.models.config import ViTConfig
from qvit.models.dense import IntegerDense
from qvit.models.fake_quantized import FakeQuantized
from qvit.models.plan import plan_scheme
from qvit.models.switching import SwitchableModel
from qvit.models.vit import ViT
from qvit.recipe import Recipe

# Images at a time: without the compiled path a ViT-Tiny takes 0.13 s an image by 8, 0.17 by 32.
PART = 8


class Answers:
    """Images and a recipe with any bits to logits, weights at their nearest codes.

    Where the processor has no compiled path the execution to train by answers: it has the grids of the simulated one,
    and takes 0.6 of its time. Between the two a value that is nearly a tie may round otherwise.
    """

    def __init__(self, model: SwitchableModel, config: ViTConfig, recipe: Recipe) -> None:
        """recipe: That the model was folded for."""
        self._model, self._config, self._folded_for = model, config, recipe

    @torch.no_grad()
    def __call__(self, images: Tensor, recipe: Recipe) -> Tensor:
        """images: normalised fp32 [N, C, H, W]; recipe: with transforms and groups as the model was folded for. Returns
        fp32 [N, classes].
        """
        scheme = plan_scheme(self._config, recipe)
        self._model.take(scheme)
        if self.fast:
            answer = QuantViT(to_integers(self._model.vit, scheme), {}, backend="cpu")
        else:
            answer = partial(self._model.vit, run=FakeQuantized())
        return torch.cat([answer(some) for some in images.split(PART)])

    @cached_property
    def fast(self) -> bool:
        """Whether the compiled path gives them; found out when first asked for."""
        scheme = plan_scheme(self._config, self._folded_for)
        integer = ViT(self._config, scheme, IntegerDense).eval().requires_grad_(False)
        with warnings.catch_warnings():  # of a machine without
            warnings.simplefilter("ignore", RuntimeWarning)
            return cpu_preparation.prepare(integer) is None
