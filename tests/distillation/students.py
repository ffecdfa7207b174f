"""A small teacher and its students, for tests of what trains them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qvit.distillation import Pool
from qvit.models.calibration import set_weight_ranges
from qvit.models.folding import fold
from qvit.models.plan import plan_scheme
from qvit.models.static import with_static_quantizers
from qvit.models.student import IntegerWeight, Seen, Student
from qvit.models.vit import ViT
from qvit.models.vit_students import SimulatedStudent, StaticStudent
from qvit.quant.static_weights import WeightQuantizer
from qvit.recipe import Distillation, Recipe
from tests.support import float_vit, images_for


class TinyStudent(Student):
    """Two layers, so that a test can follow what a step does to them."""

    def __init__(self, bits: int = 4) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 5)
        self.quantizer = WeightQuantizer(bits)

    def forward(self, images: Tensor) -> Seen:
        hidden = nn.functional.linear(
            images.flatten(1), self.quantizer(self.first.weight), self.first.bias
        ).relu()
        logits = nn.functional.linear(hidden, self.quantizer(self.second.weight), self.second.bias)
        return Seen(logits, features=(hidden,))

    def integer_weights(self) -> Sequence[IntegerWeight]:
        return [
            IntegerWeight(f"{name}.weight", layer.weight, self.quantizer.codes)
            for name, layer in (("first", self.first), ("second", self.second))
        ]


class TinyTeacher:
    """The float network that the tiny student starts from."""

    def __init__(self) -> None:
        source = TinyStudent()
        self.first, self.second = source.first, source.second

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Seen:
        hidden = self.first(images.flatten(1)).relu()
        return Seen(self.second(hidden), features=(hidden,))


def tiny_pool(count: int = 20) -> Pool:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(count, 3, 2, 2, generator=generator).half()
    return Pool(images, torch.randint(5, (count,), generator=generator))


def quick(method: str = "kl", **changes) -> Distillation:
    return Distillation.preset(method, **{"epochs": 3, "batch": 4, "augment": False, **changes})


def static_student(vit: ViT, bits: int = 4, weights=None, **changes) -> StaticStudent:
    """`changes` of the section static, `weights` of weights."""
    values = Recipe.preset("plain", weight_bits=bits, activation_bits=bits).to_dict()
    values["weights"] |= weights or {}
    recipe = Recipe.from_dict({**values, "static": changes})
    student = StaticStudent(with_static_quantizers(vit, recipe))
    student.calibrate(images_for(vit, 8))
    return student


def simulated_student(vit: ViT, bits: int = 4) -> SimulatedStudent:
    recipe = Recipe.preset("qvit", weight_bits=bits, activation_bits=bits)
    recipe = recipe.override(["transforms.v=true"])
    folded = fold(vit, plan_scheme(vit.config, recipe), seed=0)
    return SimulatedStudent(set_weight_ranges(folded, recipe.weights.range))


def small_vit() -> ViT:
    return float_vit("registers")
