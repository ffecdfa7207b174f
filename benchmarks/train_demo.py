"""Train the models that the package carries, on rendered images, on a processor: python benchmarks/train_demo.py

Everything is drawn from one seed and runs in one thread, so that the same processor and the same torch write the same
bytes; elsewhere sums round otherwise, and thousands of steps make other weights of about the same accuracy of that.
"""

import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "kernels"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.cells import ROOT
from benchmarks.demo.naive import quantize_naively
from benchmarks.demo.rendered import PATCH, Rendered, augment, normalise, render_series, shares
from qvit import zoo
from qvit.demo.canvas import SIZE
from qvit.demo.dataset import CLASSES, TEST_SEED, TRAINING_SEED
from qvit.demo.packaged import MODELS
from qvit.machine import describe_machine, package_versions

WEIGHTS = ROOT / "qvit" / "demo" / "weights"
RESULT = ROOT / "benchmarks" / "results" / "demo-models.json"
FRESH_IMAGES = 5000
CALIBRATION_IMAGES = 32
NAIVE_BITS = (8, 4)

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    # 4 heads of 32 in 6 blocks: two blocks of 64 channels for what groups and rotates by 64
    "demo_vit": (
        "vit_tiny_patch16_224",
        {
            "img_size": SIZE,
            "patch_size": PATCH,
            "embed_dim": 128,
            "depth": 6,
            "num_heads": 4,
            "mlp_ratio": 2,
        },
    ),
    # ResNet-18 at a quarter of its width, with the stem of three small convolutions.
    "demo_resnet": (
        "resnet18",
        {"channels": [16, 32, 64, 128], "stem_type": "deep", "stem_width": 8},
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast; both rates follow one cosine after a short rise."""

    images: int = 30_000
    batch: int = 64
    steps: int
    adam_rate: float
    muon_rate: float = 0.02
    warmup: int = 100
    decay: float = 0.05
    smoothing: float = 0.05
    dense_weight: float = 1.0
    seed: int = 0


SCHEDULES = {
    "demo_vit": Schedule(steps=7000, adam_rate=1e-3),
    "demo_resnet": Schedule(steps=6000, adam_rate=2e-3),
}


def build(name: str) -> nn.Module:
    """A model with fresh weights."""
    architecture, arguments = ARCHITECTURES[name]
    model = timm.create_model(architecture, num_classes=len(CLASSES), **arguments)
    for block in getattr(model, "blocks", []):
        # torch's fused attention takes half the time of a step going backward on a processor
        block.attn.fused_attn = False
    if name == "demo_vit":
        start_near_identity(model)
    return model


@torch.no_grad()
def start_near_identity(model: Any) -> None:
    """Mimetic initialisation (Trockman and Kolter 2023): attention starts out as it ends up in trained ViTs.

    Q K^T is near the identity and V proj near its negative, on sinusoidal positions, so that tokens look at
    themselves and their neighbours from the first step.
    """
    width = model.embed_dim
    identity = torch.eye(width)
    for block in model.blocks:
        d, weight = block.attn.head_dim, block.attn.qkv.weight
        for head in range(block.attn.num_heads):
            rows = slice(head * d, (head + 1) * d)
            noise = torch.randn(width, width) / math.sqrt(width)
            u, s, v = torch.linalg.svd(0.7 * noise + 0.7 * identity)
            weight[:width][rows] = (u[:, :d] * s[:d].sqrt()).T
            weight[width : 2 * width][rows] = (v[:d].T * s[:d].sqrt()).T
        u, s, v = torch.linalg.svd(
            0.4 * torch.randn(width, width) / math.sqrt(width) - 0.4 * identity
        )
        weight[2 * width :] = (v.T * s.sqrt()).T
        block.attn.proj.weight.copy_(u * s.sqrt())
    side = model.patch_embed.grid_size[0]
    frequencies = 10_000.0 ** -(torch.arange(width // 4) / (width // 4))
    rows, columns = (index.flatten()[:, None] * frequencies for index in torch.meshgrid(
        torch.arange(side), torch.arange(side), indexing="ij"
    ))  # fmt: skip
    waves = torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], dim=1)
    model.pos_embed[0, model.num_prefix_tokens :] = 0.3 * waves


class Trainee(nn.Module):
    """A model with, for a ViT, a second head that names what every patch shows, which is left behind afterwards.

    One label an image teaches a ViT nothing for its first tens of thousands of images; 64 more teach it at once.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.patches = None
        if hasattr(model, "blocks"):
            self.patches = nn.Linear(model.embed_dim, len(CLASSES) + 1)

    def loss(self, images: Tensor, labels: Tensor, regions: Tensor, schedule: Schedule) -> Tensor:
        """Of a batch; regions: uint8 [B, height, width], class + 1 of every pixel, 0 for the background."""
        features = self.model.forward_features(images)
        logits = self.model.forward_head(features).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=schedule.smoothing)
        if self.patches is None:
            return loss
        named = self.patches(features[:, self.model.num_prefix_tokens :]).float()
        dense = F.cross_entropy(named.flatten(0, 1), shares(regions).flatten(0, 1))
        return loss + schedule.dense_weight * dense


def optimizers(trainee: Trainee, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside a ViT's blocks, AdamW for the rest, no decay on vectors."""
    named = dict(trainee.named_parameters())
    inner = [p for name, p in named.items() if ".blocks." in name and p.ndim == 2]
    taken = {id(p) for p in inner}
    rest = [p for p in named.values() if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": schedule.decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=schedule.adam_rate, betas=(0.9, 0.98))
    ]
    if inner:
        found.append(torch.optim.Muon(inner, lr=schedule.muon_rate, weight_decay=schedule.decay))
    return found


def train(name: str, series: Rendered, schedule: Schedule) -> nn.Module:
    """A trained model in eval mode, the same for the same schedule, series and machine."""
    torch.manual_seed(schedule.seed)
    trainee = Trainee(build(name))
    steppers = optimizers(trainee, schedule)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(s, _rate(schedule)) for s in steppers]
    generator = torch.Generator().manual_seed(schedule.seed)
    trainee.train()
    with tqdm(total=schedule.steps, desc=name, disable=None) as bar:
        for chosen in _batches(series, schedule, generator):
            images, labels, regions = augment(series, chosen, generator)
            with torch.autocast("cpu", torch.bfloat16):
                loss = trainee.loss(images, labels, regions, schedule)
            trainee.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
            for stepper, scheduler in zip(steppers, schedulers, strict=True):
                stepper.step()
                scheduler.step()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return trainee.model.eval()


def _rate(schedule: Schedule) -> Any:
    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / schedule.warmup)
        return rise * 0.5 * (1 + math.cos(math.pi * step / schedule.steps))

    return factor


def _batches(series: Rendered, schedule: Schedule, generator: torch.Generator) -> Iterator[Tensor]:
    order = torch.empty(0, dtype=torch.long)
    for _ in range(schedule.steps):
        if len(order) < schedule.batch:
            order = torch.randperm(len(series.labels), generator=generator)
        yield order[: schedule.batch]
        order = order[schedule.batch :]


def rounded(model: nn.Module) -> dict[str, Tensor]:
    """The weights as the file holds them: fp16, counters as they are."""
    return {
        name: value.half() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }


def top1(model: nn.Module, series: Rendered) -> float:
    """Percent of images whose label has the highest logit."""
    with torch.inference_mode():
        right = sum(
            int((model(normalise(images)).argmax(1) == labels).sum())
            for images, labels in zip(
                series.images.split(250), series.labels.split(250), strict=True
            )
        )
    return 100 * right / len(series.labels)


def measure(model: nn.Module, fresh: Rendered, sample: Rendered) -> dict[str, Any]:
    """Accuracy of the float model and of naive low-bit ones, on images it has not seen."""
    calibration = normalise(sample.images)
    return {
        "float32_top1": top1(model, fresh),
        "naive_static_per_tensor_top1": {
            f"W{bits}A{bits}": top1(quantize_naively(model, calibration, bits=bits), fresh)
            for bits in NAIVE_BITS
        },
    }


def write_folder(name: str, state: dict[str, Tensor], folder: Path) -> int:
    """Write a folder in timm's format; returns the bytes of the weights."""
    architecture, arguments = ARCHITECTURES[name]
    first, classifier = ("patch_embed.proj", "head") if name == "demo_vit" else ("conv1.0", "fc")
    config = {
        "architecture": architecture,
        "num_classes": len(CLASSES),
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "qvit_demo",
            "input_size": [3, SIZE, SIZE],
            "fixed_input_size": name == "demo_vit",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "num_classes": len(CLASSES),
            "license": "apache-2.0",
            "first_conv": first,
            "classifier": classifier,
            "label_names": list(CLASSES),
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    target, beside = folder / "model.safetensors", folder / ".model.safetensors"
    # not save_file, whose files only their owner may read
    beside.write_bytes(save({key: value.contiguous() for key, value in state.items()}))
    beside.replace(target)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return target.stat().st_size


def train_and_write(
    name: str, series: Rendered, schedule: Schedule, folder: Path
) -> dict[str, Any]:
    """Train a model and write its folder; returns what is to be told of the training."""
    start, start_cpu = time.perf_counter(), time.process_time()
    model = train(name, series, schedule)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": write_folder(name, rounded(model), folder),
        "schedule": asdict(schedule),
        "training_seconds": round(seconds),
        "processor_seconds": round(cpu),
        "machine": describe_machine(),
        "versions": package_versions(),
    }


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(MODELS)))
@click.option("--steps", type=int, help="Fewer than the schedule's, to try the script.")
@click.option("--images", type=int, help="Rendered for training, instead of the schedule's.")
@click.option("--fresh", default=FRESH_IMAGES, show_default=True, help="Images to measure on.")
@click.option("--out", type=click.Path(path_type=Path), default=WEIGHTS, help="Where folders go.")
@click.option("--result", type=click.Path(path_type=Path), default=RESULT, help="Where figures go.")
@click.option("--measure-only", is_flag=True, help="Train nothing: measure the folders in --out.")
def main(names: tuple[str, ...], out: Path, result: Path, **options: Any) -> None:
    """Train the packaged models (or those named), write their folders and measure them."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    changes = {key: options[key] for key in ("steps", "images") if options[key] is not None}
    found: dict[str, Any] = {}
    fresh = render_series(TEST_SEED, options["fresh"])
    for name in names or MODELS:
        schedule = Schedule(**(asdict(SCHEDULES[name]) | changes))
        folder = out / name
        if not options["measure_only"]:
            series = render_series(TRAINING_SEED, schedule.images)
            found[name] = train_and_write(name, series, schedule, folder)
        model = zoo.load(zoo.resolve(str(folder)))
        figures = measure(model, fresh, render_series(TRAINING_SEED, CALIBRATION_IMAGES))
        found[name] = found.get(name, {}) | {"fresh_images": options["fresh"], **figures}
        print(name, json.dumps(figures))
    # read only now: the two models may be trained side by side
    before = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}
    found = {**before, **{name: before.get(name, {}) | row for name, row in found.items()}}
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
