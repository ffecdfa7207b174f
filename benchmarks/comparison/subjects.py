"""Subjects: a float model with its teacher, its students, and real images to measure by and to compare with."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.classes import SHARED
from benchmarks.demo.rendered import normalise, render_series
from benchmarks.sources import source
from qvit import zoo
from qvit.data import DataConfig, open_images
from qvit.demo.dataset import TEST_SEED, TRAINING_SEED
from qvit.distillation import Pool
from qvit.evaluation import Predictions, compare, divergences
from qvit.models.calibration import set_weight_ranges
from qvit.models.convolutional import ConvolutionalStudent, ResNetTeacher
from qvit.models.folding import fold
from qvit.models.networks import Network, read_network
from qvit.models.plan import plan_scheme
from qvit.models.static import with_static_quantizers
from qvit.models.student import Student, Teacher
from qvit.models.vit import ViT
from qvit.models.vit_students import SimulatedStudent, StaticStudent
from qvit.models.watching import FloatTeacher
from qvit.quant.static_activations import LearnedStep
from qvit.recipe import Recipe

# Designs are chosen on "dev"; "test" is looked at once they are. Demo: another series of pictures each. ImageNet: odd
# classes of the training images, and the validation images.
SPLITS = ("dev", "test")
DEV_SEED = 3
CALIBRATED_ON = 32  # images


@dataclass(frozen=True, slots=True)
class Subject:
    """A model under comparison.

    Attributes:
        source: Where its weights come from.
        network: The float model.
        teacher: The same, as students see it.
    """

    source: zoo.Source
    network: Network
    teacher: Teacher

    @property
    def rendered(self) -> bool:
        """Whether its images are drawn by the package."""
        return self.source.name.startswith("demo_")

    def student(self, recipe: Recipe) -> Student:
        """An untrained one under a recipe, not calibrated yet."""
        if not isinstance(self.network, ViT):
            return ConvolutionalStudent(self.network, recipe)
        if recipe.static is not None:
            return StaticStudent(with_static_quantizers(self.network, recipe))
        folded = fold(self.network, plan_scheme(self.network.config, recipe), seed=recipe.seed)
        return SimulatedStudent(set_weight_ranges(folded, recipe.weights.range))

    def real(self, count: int) -> Pool:
        """Training images: of even classes, spread over them; or of the series that the demo was trained on."""
        if self.rendered:
            return _rendered(TRAINING_SEED, count)
        return self._folder("train", lambda label: label % 2 == 0, count)

    def measured(self, split: str, count: int) -> Pool:
        """Images that results are measured on."""
        if self.rendered:
            return _rendered(DEV_SEED if split == "dev" else TEST_SEED, count)
        if split == "dev":
            return self._folder("train", lambda label: label % 2 == 1, count)
        return self._folder("val", lambda label: True, count)

    def _folder(self, split: str, wanted: Callable[[int], bool], count: int) -> Pool:
        images = open_images(
            SHARED / "imagenet" / split,
            DataConfig.from_pretrained_cfg(self.source.pretrained_cfg),
            class_map=SHARED / "imagenet" / "synsets.txt",
            num_classes=self.source.num_classes,
        )
        fitting = [i for i, label in enumerate(images.labels) if wanted(label)]
        count = min(count, len(fitting))
        chosen = [fitting[n * len(fitting) // count] for n in range(count)]
        pixels = torch.stack([images.read(i).half() for i in chosen])
        return Pool(pixels, torch.tensor([images.labels[i] for i in chosen]))


@lru_cache(maxsize=2)
def subject(name: str) -> Subject:
    """By alias."""
    found = source(name)
    network = read_network(zoo.load(found), found.pretrained_cfg)
    teacher = FloatTeacher(network) if isinstance(network, ViT) else ResNetTeacher(network)
    return Subject(found, network, teacher)


@lru_cache(maxsize=4)
def answers(name: str, split: str, count: int) -> tuple[Pool, Tensor]:
    """Images to measure by, and the float model's logits of them."""
    found = subject(name)
    pool = found.measured(split, count)
    return pool, predict(found.teacher, pool)


@torch.no_grad()
def softmax_reach(student: Student) -> list[float] | None:
    """The largest softmax output that the grid of each block reaches; None without grids that are learned."""
    grids = [
        module
        for name, module in student.named_modules()
        if name.endswith("attn.quantizers.softmax") and isinstance(module, LearnedStep)
    ]
    found = [float(g.scale * (2**g.bits - 1 - g.zero_point.round())) for g in grids]
    return [round(value, 3) for value in found] or None


@torch.no_grad()
def predict(model: Callable[[Tensor], Any], pool: Pool) -> Tensor:
    """Logits of all images, fp32 [N, classes]."""
    parts = torch.arange(len(pool)).split(50)
    return torch.cat([model(pool.take(some)[0]).logits.float() for some in parts])


def judge(student: Callable[[Tensor], Any], name: str, split: str, count: int) -> dict[str, Any]:
    """A student beside the float model on images to measure by: `result`, and `each`, what came of each image."""
    measured, logits = answers(name, split, count)
    assert measured.labels is not None
    known = measured.labels, torch.arange(len(measured)), 0
    ours = predict(student, measured)
    found = compare(Predictions(ours, *known), Predictions(logits, *known))
    return {"result": found.to_dict(), "each": each_answer(ours, logits, measured.labels)}


def each_answer(ours: Tensor, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """What came of each image, for differences image by image: a 1 where the label has the highest logit, and the KL
    divergence from the float model's logits in nats; both logits fp32 [N, classes].
    """
    right = (ours.argmax(-1) == labels).int().tolist()
    kls = divergences(logits, ours).tolist()
    return {"right": "".join(map(str, right)), "kl": [float(f"{kl:.4g}") for kl in kls]}


@lru_cache(maxsize=3)
def _rendered(seed: int, count: int) -> Pool:
    series = render_series(seed, count)
    return Pool(normalise(series.images).half(), series.labels)
