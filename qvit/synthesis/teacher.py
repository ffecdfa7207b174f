"""What a run starts from: the float model, the hash of its weights, the user's images; and what its manifest says."""

import hashlib
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from qvit import __version__, zoo
from qvit.errors import UsageError
from qvit.models.networks import Network, NetworkConfig, read_network, read_network_config
from qvit.models.resnet import ResNetConfig
from qvit.models.student import Student
from qvit.models.timm_import import read_config
from qvit.recipe import Synthesis
from qvit.recipe.synthesis import ATTENTIVE
from qvit.synthesis.folder import UserImages
from qvit.synthesis.generator import ImageGenerator
from qvit.synthesis.shards import FORMAT, FORMAT_VERSION, fingerprint
from qvit.zoo import Source


@dataclass(frozen=True, slots=True)
class Teacher:
    """What the images are made from.

    Attributes:
        network: The float model, in eval mode.
        weights_sha256: Of its file; None for random weights.
        given: The user's images, where they are the method.
        batches: How many there will be.
        student: The low-bit network that images are made with, where there is one.
        student_sha256: Of its parameters and buffers.
        maker: The generator that images are drawn from, once it is trained, where there is one.
    """

    network: Network
    weights_sha256: str | None
    given: UserImages | None
    batches: int
    student: Student | None = None
    student_sha256: str | None = None
    maker: ImageGenerator | None = None


def load_teacher(
    source: Source, settings: Synthesis, seed: int, device: str, student: Student | None = None
) -> Teacher:
    """Everything that a run reads, read.

    Raises:
        UsageError: As `read_shape`.
        InputError: Weights or images are absent, too few, or do not fit.
    """
    path = zoo.fetch(source)
    model = zoo.load(source, seed=seed)
    config = read_shape(model, source, settings)
    network = read_network(model, source.pretrained_cfg).to(device)
    given = None
    if not settings.data_free:
        given = UserImages(settings, source.pretrained_cfg, config.num_classes)
    batches = -(-settings.images // settings.batch)
    if not settings.alignment:
        student = (
            None  # no other term asks it, and images that are not made with it are any student's
        )
    digest = None if student is None else hash_state(student)
    weights = None if path is None else _hash(path)
    return Teacher(network, weights, given, batches, student, digest)


def read_shape(model: nn.Module, source: Source, settings: Synthesis) -> NetworkConfig:
    """The shape of a timm model that the method can work with, on any device.

    Raises:
        UsageError: The model is of no kind that the method knows, lacks what it looks at, or has no classes and the
            method needs them.
    """
    read = read_config if settings.method in ATTENTIVE else read_network_config
    config = read(model, source.pretrained_cfg)
    if settings.method == "bns" and not isinstance(config, ResNetConfig):
        raise UsageError(
            f"{source.name} has no BatchNorm, whose statistics bns matches; use {', '.join(ATTENTIVE)}, or a ResNet"
        )
    if config.num_classes:
        return config
    if settings.classes:
        raise UsageError(
            f"{source.name} has no classes, which {settings.method} leads its images to; leave them out with "
            "--set synthesis.classes=0, or take weights with a classifier"
        )
    if settings.method == "sardfq":
        raise UsageError(
            f"{source.name} has no classes, and sardfq is about them; use another method"
        )
    return config


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_state(network: nn.Module) -> str:
    """sha256 (hex) of the names and bytes of all parameters and buffers."""
    found = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def describe(source: Source, teacher: Teacher, settings: Synthesis, seed: int) -> dict[str, Any]:
    """The manifest of a run, apart from its shards: `run` is everything that decides the bytes."""
    config = teacher.network.config
    kind = next(teacher.network.parameters()).device.type
    run = {
        "format_version": FORMAT_VERSION,
        "model": source.timm_name,
        "weights_sha256": teacher.weights_sha256,
        "mean": list(config.mean),
        "std": list(config.std),
        "student_sha256": teacher.student_sha256,
        "settings": asdict(settings),
        "seed": seed,
        "threads": torch.get_num_threads(),
        "device": kind if kind == "cpu" else torch.cuda.get_device_name(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "qvit": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "data": None if teacher.given is None else teacher.given.fingerprint,
    }
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint(run),
        "run": run,
        "model": {
            "name": source.name,
            "timm_name": source.timm_name,
            "pretrained": source.pretrained,
            "weights_sha256": teacher.weights_sha256,
            "mean": list(config.mean),
            "std": list(config.std),
            "num_classes": config.num_classes,
        },
        "method": settings.method,
        "settings": asdict(settings),
        "seed": seed,
        "threads": run["threads"],
        "versions": {
            "qvit": __version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "python": platform.python_version(),
        },
        "counts": {"images": settings.images, "batch": settings.batch, "batches": teacher.batches},
        "shape": [config.in_chans, *config.image_size],
        "privacy": _privacy(settings, teacher),
    }


def _privacy(settings: Synthesis, teacher: Teacher) -> dict[str, Any]:
    if not settings.data_free:
        beside = f", and {settings.leaves} dead leaves" if settings.leaves else ""
        return {
            "data_free": False,
            "images_read": settings.images_read,
            "inputs": ["the weights", f"images of the user: {settings.data}"],
            "statement": f"These are the user's own images, preprocessed for the model{beside}.",
        }
    return {
        "data_free": True,
        "images_read": 0,
        "inputs": [_name_weights(teacher), *_name_student(teacher), "the seed", "the settings"],
        "statement": "Made from the weights and the seed alone. While images were made, a guard in the process refused "
        "to open anything but code, system files and this folder; native libraries that open files without telling "
        "Python are outside of what it sees.",
    }


def _name_weights(teacher: Teacher) -> str:
    digest = teacher.weights_sha256
    return "random weights, drawn with the seed" if digest is None else f"weights, sha256 {digest}"


def _name_student(teacher: Teacher) -> list[str]:
    digest = teacher.student_sha256
    return [] if digest is None else [f"a student of this model, sha256 of its state {digest}"]
