"""From a synthesis folder to the evidence of its report: the records, the teacher, and three sets of images."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from qvit import zoo
from qvit.data import DataConfig, open_images
from qvit.deployment.checkpoint import hash_file
from qvit.distillation.progress import read_log
from qvit.errors import InputError, UsageError
from qvit.kept import model_beside, training_beside
from qvit.models.networks import read_network_config
from qvit.models.resnet import ResNetConfig
from qvit.models.timm_import import read_model
from qvit.report.evidence import Evidence
from qvit.report.observation import observe, spread
from qvit.report.page import NOISE, REAL, SYNTHETIC
from qvit.report.records import read_run
from qvit.synthesis import measures, shards
from qvit.synthesis.seeds import generator_for
from qvit.zoo import Source

logger = logging.getLogger("qvit")


def gather(
    folder: Path, *, real: str | None, limit: int, weights: Path | None, progress: bool
) -> Evidence:
    """Read a run's records, and let its teacher look at synthetic images, at noise, and at real images if given.

    Of each kind as many, `limit` at most. For the arguments and errors see writing.write_report.
    """
    images = shards.open_images(folder)
    source = find_teacher(images.manifest, weights)
    with torch.device("meta"):
        if isinstance(read_network_config(zoo.build(source), source.pretrained_cfg), ResNetConfig):
            raise UsageError(
                f"{folder} holds images of {source.name}, a ResNet, and the report is about attention, which it has "
                "none of; the losses and measures of the run are in its log.jsonl"
            )
    with tqdm(total=3 + (real is not None), leave=False, disable=None if progress else True) as bar:
        bar.set_description("reading")
        pixels, classes = sample(images, limit)
        # noise and leaves were given random labels, which nothing in them has to do with
        settings = images.manifest["settings"]
        labelled = settings["method"] not in ("noise", "leaves") and settings.get("labelled", True)
        wanted = classes if labelled else None
        mine = open_real(real, source, len(pixels)) if real is not None else None
        teacher = read_model(zoo.load(source, seed=images.manifest["seed"]), source.pretrained_cfg)
        # The seed of the noise is nobody else's: the stages of a run have other names.
        noise = torch.randn(pixels.shape, generator=generator_for(0, "report", 0))
        if mine is not None:  # they come class by class, and the first of them are shown
            mine = mine[torch.randperm(len(mine), generator=generator_for(0, "report", 1))]
        # As the run measured its batches, or its traces could not be compared with noise and real images.
        together = min(measures.TOGETHER, images.manifest["counts"]["batch"])
        found = {}
        for role, each in ((SYNTHETIC, pixels), (NOISE, noise), (REAL, mine)):
            bar.update()
            if each is not None:
                bar.set_description(f"measuring {role} images")
                found[role] = observe(
                    teacher,
                    role,
                    each,
                    wanted=wanted if role == SYNTHETIC else None,
                    together=together,
                )
    return Evidence(
        run=read_run(folder, images.manifest, images.log()),
        config=teacher.config,
        class_names=name_classes(source),
        synthetic=found[SYNTHETIC],
        noise=found[NOISE],
        real=found.get(REAL),
        real_source=real or "",
        training=read_training(folder),
    )


def read_training(folder: Path) -> list[dict[str, Any]]:
    """Lines of the training that `qvit quantize` keeps beside its images: out/x-images, out/x-training."""
    model = model_beside(folder)
    return [] if model is None else read_log(training_beside(model))


def find_teacher(manifest: Mapping[str, Any], weights: Path | None) -> Source:
    """The float model that a run's images came from.

    Raises:
        InputError: The weights found are others than those of the run.
        RequirementError: They are not there and cannot be downloaded.
    """
    recorded = manifest["model"]
    name = recorded["name"]
    if not recorded["pretrained"]:
        return zoo.resolve(name, pretrained=False)
    source = zoo.resolve(name, weights=weights)
    path = zoo.fetch(source)
    if path is None or hash_file(path) != recorded["weights_sha256"]:
        raise InputError(
            f"{path} holds other weights than those of {name} that the images were made from; name the right ones with"
            " --weights FILE"
        )
    return source


def sample(images: shards.Images, limit: int) -> tuple[Tensor, list[int]]:
    """Images [n, C, H, W], spread evenly over the run, and the class that each was made for."""
    chosen = set(spread(len(images), limit))
    pixels, wanted, first = [], [], 0
    for batch, labels in images:
        rows = [i for i in range(len(batch)) if first + i in chosen]
        first += len(batch)
        pixels.append(batch[rows])
        wanted += (labels.argmax(-1) if labels.is_floating_point() else labels)[rows].tolist()
    return torch.cat(pixels), wanted


def open_real(data: str, source: Source, count: int) -> Tensor:
    """`count` of the user's images under the model's preprocessing, or as many as there are, [n, C, H, W].

    Raises:
        InputError: There are none, or one cannot be read.
    """
    found = open_images(data, DataConfig.from_pretrained_cfg(source.pretrained_cfg), limit=count)
    images = []
    for index in range(len(found)):
        try:
            images.append(found.read(index))
        except OSError as error:
            raise InputError(
                f"{found.path(index)} cannot be read: {error}. Take it out of {data}"
            ) from error
    if len(images) < count:
        logger.info(
            "%s has %d images, and %d synthetic ones are measured", data, len(images), count
        )
    return torch.stack(images)


def name_classes(source: Source) -> dict[int, str]:
    """Index to name: what the weights' configuration says, else timm's names of ImageNet's classes, else nothing."""
    names = source.pretrained_cfg.get("label_names")
    if names:
        return dict(enumerate(map(str, names)))
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({**source.pretrained_cfg, "num_classes": source.num_classes})
    if subset is None:
        return {}
    info = ImageNetInfo(subset)
    return {index: info.index_to_description(index) for index in range(info.num_classes())}
