"""The whole recipe on one page: from a float model's name to the folder with its integers."""

import os
import platform
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from qvit import __version__, zoo
from qvit.deployment import checkpoint, storage
from qvit.deployment.conversion import to_integers
from qvit.deployment.folders import check_target, written_whole
from qvit.deployment.model_card import model_card
from qvit.deployment.provenance import describe_origin
from qvit.distillation.pool import Pool
from qvit.distillation.reconstruction import reconstruct
from qvit.distillation.stage import makes_own_images, plan_training, train
from qvit.errors import UsageError
from qvit.kept import images_beside, rounding_beside, training_beside
from qvit.machine import package_versions
from qvit.models.calibration import set_weight_ranges
from qvit.models.config import ViTConfig
from qvit.models.dense import IntegerDense
from qvit.models.folding import fold
from qvit.models.plan import name_scheme, plan_scheme
from qvit.models.rounding import round_weights
from qvit.models.timm_import import read_config, read_model, read_shape
from qvit.models.vit import ViT
from qvit.models.vit_students import SimulatedStudent
from qvit.models.watching import FloatTeacher
from qvit.quant.schemes import ModelScheme
from qvit.recipe import PUBLICATIONS, Recipe
from qvit.recipe.bits import matches
from qvit.recipe.publications import CUSTOM
from qvit.synthesis import estimate, synthesize
from qvit.zoo import Source

# Per million float weights, from load to folder, on one core: 1 s for ViT-Tiny, 14 s for ViT-B at 4 bits.
_SECONDS_PER_MILLION = 0.2
# gptq, per image and million weights: 6 s for ViT-Tiny and 32 images.
_ROUNDING_SECONDS = 0.035
# gptq, per million weights, for grids that move: a constant, and a part that grows with the width. 5 s for ViT-Tiny.
_REFIT_SECONDS = 0.5, 0.002


def quantize(
    source: Source, recipe: Recipe, out: Path, *, overwrite: bool = False, progress: bool = True
) -> dict[str, Any]:
    """Quantize a float model and write the checkpoint folder `out`; without data, unless the recipe names some.

    With `recipe.synthesis`, images are made, into the folder beside `out` that `images_beside` names if they are dear,
    and into one that is gone afterwards if they are not, or are the user's; with `recipe.weights.rounding` = gptq or
    learned weights are rounded for them (learned keeps finished blocks in the folder that `rounding_beside` names); and
    with `recipe.distillation` the low-bit model is trained on them, with state and log in the folder that
    `training_beside` names; images that are made while it is trained lie there, too. An interrupted run is continued.
    Images are no part of the checkpoint.

    Returns the path, bytes, ratio to the fp32 weights, sha256 of model.safetensors and seconds of each stage.
    Raises UsageError for a model that is no plain ViT, a recipe whose quantizers are only simulated, a target that may
    not be written, or images or training in one of several processes, and the errors of `zoo.load`; nothing is left
    behind then.
    """
    out = out.resolve()
    _check_alone(recipe)
    check_target(out, overwrite=overwrite, is_ours=checkpoint.is_checkpoint)
    _check_recipe(source, recipe)
    optional = recipe.weights.rounding != "nearest", recipe.distillation is not None
    plan_scheme(read_shape(source), recipe)  # refuses before weights are fetched
    stages = _Stages(progress, 5 + _makes_images(recipe) + sum(optional))
    with stages("load"):
        weights = zoo.fetch(source)
        model = zoo.load(source, seed=recipe.seed)
        vit = read_model(model, source.pretrained_cfg)
        fp32_bytes = _fp32_bytes(model)
    with stages("fold"):
        scheme = plan_scheme(vit.config, recipe)
        name = name_scheme(vit.config, scheme)
        simulated = fold(vit, scheme, seed=recipe.seed)
    with stages("ranges"):
        set_weight_ranges(simulated, recipe.weights.range)
    with _images_folder(recipe, out) as images:
        learned = _learn(source, vit, simulated, recipe, images, out, stages)
    with stages("pack"):
        integer = to_integers(simulated, scheme)
    with stages("write"), written_whole(out) as folder:
        storage.save_weights(integer, folder)
        size = (folder / storage.WEIGHTS).stat().st_size
        digest = checkpoint.hash_file(folder / storage.WEIGHTS)
        origin = describe_origin(source, weights)
        run = _run_json(origin, recipe, digest, stages.seconds, learned)
        checkpoint.write_json(folder / checkpoint.RUN, run)
        config = _config_json(source, vit.config, scheme, name)
        checkpoint.write_json(folder / checkpoint.CONFIG, config)
        (folder / checkpoint.RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")
        card = _card(source, origin, recipe, scheme, name, size, size / fp32_bytes)
        (folder / checkpoint.CARD).write_text(card, encoding="utf-8")
        checkpoint.load(folder)  # what cannot be read back must not be called finished
    return {
        "path": str(out),
        "model": source.timm_name,
        "scheme": name,
        "bytes": size,
        "fp32_bytes": fp32_bytes,
        "ratio": round(size / fp32_bytes, 4),
        "sha256": digest,
        **learned,
        "seconds": {name: round(value, 2) for name, value in stages.seconds.items()},
    }


def _makes_images(recipe: Recipe) -> bool:
    """Whether images are a stage of their own."""
    return recipe.synthesis is not None and not makes_own_images(recipe)


@contextmanager
def _images_folder(recipe: Recipe, out: Path) -> Iterator[Path]:
    """Where images are put: beside the model, if making them again would cost anything."""
    if recipe.synthesis is None or recipe.synthesis.optimised:
        yield images_beside(out)
        return
    with TemporaryDirectory(prefix="qvit-images-") as folder:
        yield Path(folder) / out.name


def _learn(
    source: Source,
    vit: ViT,
    simulated: ViT,
    recipe: Recipe,
    images: Path,
    out: Path,
    stages: "_Stages",
) -> dict[str, Any]:
    """Make images, round for them and train on them, in place, as far as the recipe says so.

    Returns what came of it: `images`, `rounding` (of every block, where it was learned) and `training`.
    """
    found: dict[str, Any] = {}
    student = SimulatedStudent(simulated)
    if recipe.synthesis is not None and _makes_images(recipe):
        with stages("images"):
            found["images"] = synthesize(
                source,
                recipe.synthesis,
                images,
                seed=recipe.seed,
                progress=stages.progress,
                student=student,
            )
        if not recipe.synthesis.optimised:
            found["images"]["path"] = None  # gone when the model is written
    if recipe.weights.rounding != "nearest":
        with stages("rounding"):
            blocks = _round(vit, simulated, recipe, images, out, stages.note)
        if blocks:
            found["rounding"] = blocks
    if recipe.distillation is not None:
        folder = training_beside(out)
        with stages("training"):
            found["training"] = train(
                source,
                vit,
                FloatTeacher(vit),
                student,
                recipe,
                images,
                folder,
                progress=stages.progress,
            )
    return found


def _round(
    vit: ViT,
    simulated: ViT,
    recipe: Recipe,
    images: Path,
    out: Path,
    done: Callable[[str], None],
) -> list[dict[str, float]]:
    """Round the weights for the recipe's images, in place; what `reconstruct` says of the blocks, if it did that."""
    pool, weights = Pool.read(images), recipe.weights
    if weights.rounding == "gptq":
        round_weights(simulated, pool.images.float(), weights.damping, done, refit=weights.refit)
        return []
    settings, folder = weights.reconstruction, rounding_beside(out)
    return reconstruct(vit, simulated, pool, settings, seed=recipe.seed, folder=folder, done=done)


def _check_recipe(source: Source, recipe: Recipe) -> None:
    if recipe.static is not None:
        options = f"--model {shlex.quote(source.name)} --w {recipe.weights.bits} --a {recipe.activations.bits}"
        if recipe.budget != CUSTOM:
            options += f" --budget {recipe.budget}"
        publication = f"python benchmarks/publications.py --recipe {recipe.name} {options}"
        told = f"; in a checkout, {publication} runs it with its own"
        raise UsageError(
            f"the quantizers of {recipe.name} are those of a publication, and simulated only: no backend computes "
            "them, so there is nothing to write. --set static=none gives the same images and training to qvit's own "
            f"quantizers{told if recipe.name in PUBLICATIONS else ''}"
        )
    images = recipe.synthesis
    if images is not None and not images.data_free and not images.data:
        raise UsageError(
            f"synthesis.method = {images.method} reads images: say which with --calib-data, or "
            "--set synthesis.data=FOLDER"
        )
    if recipe.weights.rounding != "nearest" and makes_own_images(recipe):
        raise UsageError(
            f"weights.rounding = {recipe.weights.rounding} needs images before the student is trained, and this recipe "
            "makes them on the way: set weights.rounding=nearest"
        )


def _check_alone(recipe: Recipe) -> None:
    """Refuse to be one of several processes, where there is work that they would get into each other's way with."""
    count = _processes()
    if recipe.synthesis is None or count == 1:
        return
    raise UsageError(
        f"quantize is the work of one process, and {count} were started: each would round and train "
        "the whole model, in the same folders. Start it without torchrun, or in a SLURM job with srun -n 1. What "
        "several do together: images, by torchrun -m qvit synthesize, and training, by a program of yours that calls "
        "qvit.distillation.distil(processes=...)"
    )


def _processes() -> int:
    """How many a launcher started beside each other. A batch script of SLURM runs once, however many tasks its job has:
    only steps, by srun, are of several.
    """
    from timm.utils.distributed import is_distributed_env, world_info_from_env

    if not is_distributed_env():
        return 1
    if "WORLD_SIZE" not in os.environ:  # timm goes by the tasks of a SLURM job
        return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    return world_info_from_env()[2]


def plan(
    source: Source, recipe: Recipe, out: Path | None = None, *, overwrite: bool = False
) -> dict[str, Any]:
    """What `quantize` would do, without weights: model, scheme, bytes of tensors and file, and estimated seconds.

    Raises what `quantize` raises for a model, a target or processes that it would refuse.
    """
    _check_alone(recipe)
    _check_recipe(source, recipe)
    training = plan_training(recipe)
    if out is not None:
        check_target(out.resolve(), overwrite=overwrite, is_ours=checkpoint.is_checkpoint)
    with torch.device("meta"):
        model = zoo.build(source)
        config = read_config(model, source.pretrained_cfg)
        scheme = plan_scheme(config, recipe)
        empty = ViT(config, scheme, IntegerDense)
    parameters = sum(p.numel() for p in model.parameters())
    learns = recipe.weights.rounding == "learned"
    steps = recipe.weights.reconstruction.steps
    rounding = {"blocks": config.depth, "steps": config.depth * steps} if learns else None
    seconds = _SECONDS_PER_MILLION
    if recipe.weights.rounding == "gptq" and recipe.synthesis is not None:
        seconds += _ROUNDING_SECONDS * recipe.synthesis.images
        if recipe.weights.refit:
            seconds += _REFIT_SECONDS[0] + _REFIT_SECONDS[1] * config.embed_dim
    return {
        "model": source.timm_name,
        "scheme": name_scheme(config, scheme),
        "license": source.license,
        "linears": len(scheme.linears),
        "parameters": parameters,
        "tensor_bytes": storage.tensor_bytes(empty),
        "bytes": storage.file_bytes(empty),
        "fp32_bytes": 4 * parameters,
        "estimated_seconds": round(5 + seconds * parameters / 1e6),
        "reads_images": _images_read(recipe) > 0,
        **({} if recipe.synthesis is None else {"images": estimate(source, recipe.synthesis)}),
        **({} if rounding is None else {"rounding": rounding}),
        **({} if training is None else {"training": training}),
    }


def _images_read(recipe: Recipe) -> int:
    """How many of the user's images the model learns from."""
    images = recipe.synthesis
    return 0 if images is None else images.images_read


class _Stages:
    """Times the stages and shows them as one progress bar on stderr."""

    def __init__(self, progress: bool, count: int) -> None:
        self.seconds: dict[str, float] = {}
        self.progress = progress
        self._bar = tqdm(total=count, unit="stage", leave=False, disable=None if progress else True)

    def note(self, text: str) -> None:
        """Show how far the present stage is."""
        self._bar.set_postfix_str(text)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._bar.set_description(name)
        start = time.perf_counter()
        try:
            yield
        except BaseException:
            self._bar.close()
            raise
        self._bar.set_postfix_str("")
        self.seconds[name] = time.perf_counter() - start
        self._bar.update()
        if self._bar.n == self._bar.total:
            self._bar.close()


def _fp32_bytes(model: nn.Module) -> int:
    return sum(4 * p.numel() for p in model.parameters())


def _config_json(
    source: Source, config: ViTConfig, scheme: ModelScheme, name: str
) -> dict[str, Any]:
    return {
        "architecture": source.architecture,
        "num_classes": config.num_classes,
        "num_features": config.embed_dim,
        "global_pool": config.global_pool,
        "model_args": source.model_args,
        # an img_size among the model's arguments wins over the size that its tag was trained at
        "pretrained_cfg": {
            **source.pretrained_cfg,
            "input_size": [config.in_chans, *config.image_size],
        },
        "quantization_config": checkpoint.quantization_config(config, scheme, name),
    }


def _run_json(
    origin: dict[str, Any],
    recipe: Recipe,
    digest: str,
    seconds: dict[str, float],
    learned: dict[str, Any],
) -> dict[str, Any]:
    """`learned`: as from _learn; of the images no more than what tells them from others."""
    versions = {"qvit": __version__, "python": platform.python_version()} | package_versions()
    if "images" in learned:
        made = {name: learned["images"][name] for name in ("path", "fingerprint", "images")}
        learned = {**learned, "images": made}
    return {
        "source": origin,
        "seed": recipe.seed,
        "budget": recipe.budget,
        "sha256": {storage.WEIGHTS: digest},
        "versions": versions,
        "machine": {"system": platform.platform(), "cpus": os.cpu_count()},
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "images_read": _images_read(recipe),
        **learned,
    }


def _card(
    source: Source,
    origin: dict[str, Any],
    recipe: Recipe,
    scheme: ModelScheme,
    name: str,
    size: int,
    ratio: float,
) -> str:
    names = [*scheme.linears, *scheme.attentions]
    layers = {p: bits for p, bits in recipe.layers.items() if any(matches(p, n) for n in names)}
    return model_card(
        layers=layers,
        source=origin,
        scheme=name,
        recipe=recipe,
        version=__version__,
        license=source.license,
        non_commercial=source.non_commercial,
        input_size=source.pretrained_cfg.get("input_size", ()),
        bytes=size,
        ratio=ratio,
    )
