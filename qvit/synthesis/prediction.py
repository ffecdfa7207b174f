"""What a run will take, before it is started: memory, time and disk, from shapes and one short measurement."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch

from qvit import zoo
from qvit.errors import UsageError
from qvit.machine import describe_cpu, usable_memory
from qvit.models.networks import NetworkConfig
from qvit.models.resnet import ResNetConfig
from qvit.recipe import Synthesis
from qvit.synthesis.distribution import processes_here
from qvit.synthesis.generator import block_shapes
from qvit.synthesis.teacher import read_shape
from qvit.zoo import Source

NOT_MEASURED = "not measured on this card"
_BASE_BYTES = 0.8e9  # Python, torch and timm, before any model
_PIXEL_COPIES = (
    16  # pixels, gradient, two moments, the view, and the differences of total variation
)
_OVERHEAD = 1.15  # of the allocator
_LAYER_COPIES = 3  # what a convolution writes is kept by it, by BatchNorm and by ReLU
# Parts of a matmul's rate that forward and backward of a block reach. ViT-Tiny, one AVX512 core, 8 images: PSAQ-ViT's
# step took 0.70 s of processor time in float32 and 0.46 s in bfloat16, MimiQ's 0.76 and 0.51, SARDFQ's 1.47 and 0.81.
_NATIVE = {"avx512_bf16", "amx_bf16", "bf16"}  # what processors call it, the last one of ARM
_EFFICIENCY = {"float32": 0.55, "bfloat16": 0.30}


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of one process.

    Attributes:
        memory_bytes: Peak of resident memory.
        iteration_seconds: One step of one batch.
        seconds: All batches of this share.
        disk_bytes: All shards.
        batches: In the whole run.
    """

    memory_bytes: int
    iteration_seconds: float
    seconds: float
    disk_bytes: int
    batches: int

    def to_dict(self) -> dict[str, float | int]:
        """For JSON, rounded to what an estimate is worth."""
        return {
            "batches": self.batches,
            "estimated_memory_bytes": self.memory_bytes,
            "estimated_iteration_seconds": float(f"{self.iteration_seconds:.2g}"),
            "estimated_seconds": float(f"{self.seconds:.2g}"),
            "estimated_disk_bytes": self.disk_bytes,
        }


def estimate(
    source: Source, settings: Synthesis, *, shares: int = 1, device: str = "cpu"
) -> dict[str, Any]:
    """What --dry-run prints, without weights: model, counts, and what `predict` says.

    On a GPU the numbers are still those of this machine's processor, and `estimated_on` says so.

    Raises:
        UsageError: The model is nothing the method works with, or the batch does not fit into memory.
    """
    with torch.device("meta"):
        config = read_shape(zoo.build(source), source, settings)
    found = predict(config, settings, shares=shares)
    check_memory(found, settings, device=device, together=processes_here())
    return {
        "model": source.timm_name,
        "method": settings.method,
        "images": settings.images,
        "batch": settings.batch,
        "iterations": settings.iterations,
        "reads_images": not settings.data_free,
        **found.to_dict(),
        "estimated_on": "cpu" if device == "cpu" else f"cpu; {NOT_MEASURED}",
    }


def predict(config: NetworkConfig, settings: Synthesis, *, shares: int = 1) -> Estimate:
    """Predict one process's needs: on ViT-Tiny, 0.5 to 1.7 times the time of a step, and memory within a third.

    Args:
        config: The shape of the teacher.
        settings: What to make.
        shares: Processes that divide the batches.
    """
    batches = math.ceil(settings.images / settings.batch)
    count = min(settings.batch, settings.images)
    views = count * (1 + settings.regions / 2)  # regions of an image: 0 to so many
    if settings.generated:
        views *= 2 + (
            settings.consistency > 0
        )  # pairs, and a look under the batch's own statistics
    mine = math.ceil(batches / shares)
    step = _iteration_seconds(config, settings, views) if settings.optimised else 0.0
    memory = _memory(config, settings, views)
    if settings.generated:
        values, operations = _generator(config, settings)
        memory += 2 * count * values * _LAYER_COPIES * 4
        step += 3 * 2 * 2 * count * operations / (_rate() * _EFFICIENCY["float32"])
    looks = 2 * _forward_operations(config, count) / _rate()  # measured before and after
    disk = settings.images * config.in_chans * math.prod(config.image_size) * 2
    return Estimate(
        memory_bytes=round(memory),
        iteration_seconds=step,
        seconds=(1 if settings.generated else mine) * settings.iterations * step + mine * looks,
        disk_bytes=disk + 10_000 * batches,
        batches=batches,
    )


def check_memory(
    found: Estimate, settings: Synthesis, *, device: str = "cpu", together: int = 1
) -> None:
    """Refuse a batch that this machine, or the card that computes on it, cannot hold.

    Args:
        found: What each process needs.
        settings: What it makes.
        device: Where.
        together: Processes that share this machine's memory.

    Raises:
        UsageError: With a batch that fits.
    """
    carded = device.startswith("cuda") and torch.cuda.is_available()
    total = torch.cuda.get_device_properties(device).total_memory if carded else usable_memory()
    share = 1 if carded else together  # each process has a card of its own
    if total is None or share * found.memory_bytes <= total:
        return
    count = min(settings.batch, settings.images)
    fitting = int(count * (total / share - _BASE_BYTES) / found.memory_bytes * 0.9)
    advice = f"try --batch {fitting}" if fitting >= 1 else "use a machine with more memory"
    if share > 1:
        advice += ", or fewer processes"
    each = f" in each of {share} processes" if share > 1 else ""
    there = "this card has {} GB" if carded else "{} GB of this machine's may be used"
    raise UsageError(
        f"a batch of {count} images needs about {found.memory_bytes / 1e9:.1f} GB of memory{each}, and "
        f"{there.format(f'{total / 1e9:.1f}')}; {advice}"
    )


def _memory(config: NetworkConfig, settings: Synthesis, views: float) -> float:
    """What a step keeps for its backward pass. Frozen weights keep no inputs of Linears: each block has the inputs of
    two norms and of GELU, and Q, K, V and the output of attention; the inter-head term has the gradients of Q and K.
    """
    pixels = config.in_chans * math.prod(config.image_size) * 4
    narrow = 2 if settings.precision == "bfloat16" else 4
    if isinstance(config, ResNetConfig):
        kept = config.activations * (_LAYER_COPIES * narrow + 4)  # statistics are in float32
        return _BASE_BYTES + _OVERHEAD * views * (kept + _PIXEL_COPIES * pixels)
    tokens = config.num_patches + config.num_prefix_tokens
    inner = config.num_heads * config.head_dim
    block = tokens * (2 * config.embed_dim * 4 + (4 * inner + 2 * config.hidden_dim) * narrow)
    if settings.method == "mimiq" and settings.attention:
        block += 2 * tokens * inner * 4
    if settings.method == "sardfq":
        block += 3 * config.num_heads * tokens * 4
    depth = config.depth if settings.optimised else 1
    return _BASE_BYTES + _OVERHEAD * (views * (depth * block + _PIXEL_COPIES * pixels))


def _iteration_seconds(config: NetworkConfig, settings: Synthesis, views: float) -> float:
    """Forward, and a backward pass that is as long, because only pixels have gradients; and the method's own term."""
    rate = _rate()
    gain = 1.0 if settings.precision == "float32" else _bfloat16_gain()
    efficiency = _EFFICIENCY[settings.precision]
    network = 2.2 * _forward_operations(config, views) / (rate * efficiency * gain)
    if isinstance(config, ResNetConfig):
        return network
    pairs = views * config.depth * config.num_patches**2
    if (
        settings.method == "mimiq"
    ):  # scores, their rows' extremes and the products of heads, there and back
        own = pairs * config.num_heads * (6 * config.head_dim + 60) / (rate * 0.5)
    else:
        own = pairs * 6 * config.head_dim / (rate * 0.2)
    return network + own


def _generator(config: NetworkConfig, settings: Synthesis) -> tuple[int, int]:
    """Values that the generator's blocks write for an image, and their multiply-adds."""
    shapes = block_shapes(config.image_size, settings.width)
    values = operations = 0
    for before, after in zip([shapes[0], *shapes], shapes, strict=False):
        values += math.prod(after)
        operations += 9 * before[0] * math.prod(after)
    return values, operations


def _forward_operations(config: NetworkConfig, views: float) -> float:
    if isinstance(config, ResNetConfig):
        return 2 * views * config.operations
    tokens = config.num_patches + config.num_prefix_tokens
    linears = sum(rows * columns for rows, columns in config.linears().values())
    attention = 2 * config.depth * tokens * config.num_heads * config.head_dim
    return 2 * views * tokens * (linears + attention)


def _rate() -> float:
    """Operations a second of a float32 matmul, measured in 50 ms."""
    return _measured_rate(torch.float32)


def _bfloat16_gain() -> float:
    """How much faster a bfloat16 matmul is than a float32 one, here."""
    return _measured_rate(torch.bfloat16) / _measured_rate(torch.float32)


def _measured_rate(dtype: torch.dtype) -> float:
    side = 768
    a = torch.ones(side, side, dtype=dtype)
    best = math.inf
    for _ in range(4):
        start = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def fastest_precision(device: str) -> str:
    """ "bfloat16" where the processor multiplies it natively, else "float32".

    By what the processor says, not by a measurement: a run that is continued must find the same answer. Elsewhere
    bfloat16 is emulated and slower than float32.
    """
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if _NATIVE & set(describe_cpu()["features"]) else "float32"
