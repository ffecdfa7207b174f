"""Subjects: a float model with its teacher, its students, and real images to measure by and to compare with."""

import copy
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
from qvit.deployment.placement import require_device
from qvit.distillation import Pool
from qvit.distillation.renewal import CALIBRATED_ON
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


@dataclass(frozen=True, slots=True)
class Subject:
    """A model under comparison.

    Attributes:
        source: Where its weights come from.
        network: The float model.
        teacher: The same, as students see it.
        device: Where both are, and what is made of them: images and students; "cpu" or "cuda".
    """

    source: zoo.Source
    network: Network
    teacher: Teacher
    device: str = "cpu"

    @property
    def rendered(self) -> bool:
        """Whether its images are drawn by the package."""
        return self.source.name.startswith("demo_")

    def student(self, recipe: Recipe) -> Student:
        """An untrained one under a recipe, not calibrated yet."""
        # Ranges of weights and rotations are found on the CPU, whatever computes with them.
        network = copy.deepcopy(self.network).to("cpu")
        if not isinstance(network, ViT):
            return ConvolutionalStudent(network, recipe).to(self.device)
        if recipe.static is not None:
            return StaticStudent(with_static_quantizers(network, recipe)).to(self.device)
        folded = fold(network, plan_scheme(network.config, recipe), seed=recipe.seed)
        return SimulatedStudent(set_weight_ranges(folded, recipe.weights.range)).to(self.device)

    def calibrate(self, student: Student, images: Tensor) -> None:
        """Set a student's static ranges from the first of some images, [N, C, H, W] of any float type."""
        student.calibrate(images[:CALIBRATED_ON].float().to(self.device))

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


def ending(seed: int, device: str) -> str:
    """Of the names of cells and folders: what is computed elsewhere has other bits."""
    return f"seed{seed}" if device == "cpu" else f"seed{seed}-{device}"


@lru_cache(maxsize=2)
def subject(name: str, device: str = "cpu") -> Subject:
    """By alias. Raises RequirementError where there is no such device."""
    require_device(device)
    found = source(name)
    network = read_network(zoo.load(found), found.pretrained_cfg).to(device)
    teacher = FloatTeacher(network) if isinstance(network, ViT) else ResNetTeacher(network)
    return Subject(found, network, teacher, device)


@lru_cache(maxsize=4)
def answers(name: str, split: str, count: int, device: str = "cpu") -> tuple[Pool, Tensor]:
    """Images to measure by, and the float model's logits of them."""
    found = subject(name, device)
    pool = found.measured(split, count)
    return pool, predict(found.teacher, pool, device)


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
def predict(model: Callable[[Tensor], Any], pool: Pool, device: str = "cpu") -> Tensor:
    """Logits of all images, fp32 [N, classes], on the CPU; device: the model's."""
    parts = torch.arange(len(pool)).split(50)
    found = [model(pool.take(some)[0].to(device)).logits.float() for some in parts]
    return torch.cat(found).cpu()


def judge(
    student: Callable[[Tensor], Any], name: str, split: str, count: int, device: str = "cpu"
) -> dict[str, Any]:
    """A student beside the float model on images to measure by: `result`, and `each`, what came of each image.

    device: Of both.
    """
    measured, logits = answers(name, split, count, device)
    assert measured.labels is not None
    known = measured.labels, torch.arange(len(measured)), 0
    ours = predict(student, measured, device)
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
