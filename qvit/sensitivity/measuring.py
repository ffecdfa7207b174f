"""The divergence that every layer brings alone, and what keeping the worst ones at 8 bits wins."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from qvit import zoo
from qvit.deployment.checkpoint import RECIPE
from qvit.distillation.divergence import soft_divergence
from qvit.errors import InputError, UsageError
from qvit.kept import SCHEMA_VERSIONS, SENSITIVITY
from qvit.models.floating import Float
from qvit.models.timm_import import read_model
from qvit.models.vit import ViT
from qvit.recipe import Recipe, load_recipe
from qvit.sensitivity.mixtures import Mixtures, block_of, streams_of
from qvit.synthesis.leaves import draw_pictures
from qvit.synthesis.seeds import generator_for
from qvit.zoo import Source

# Suggested are layers that bring more than so many times what the median one does, at most this share of them.
_TIMES, _SHARE = 2.0, 0.10
# Standard errors that what is won lies above nothing: of other images, 95 times in 100 it would be won, too.
_SURE = 1.645


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """images: Pictures that answers are compared on. batch: So many at a time, whose memory 12 streams take."""

    images: int = 32
    batch: int = 8

    def __post_init__(self) -> None:
        if self.images < 1 or self.batch < 1:
            raise UsageError(
                f"--images {self.images}, in batches of {self.batch}: at least 1 is needed"
            )


def recipe_of(folder: Path) -> Recipe:
    """The recipe that a quantized folder was made with; raises InputError where it has none."""
    path = folder / RECIPE
    if not path.is_file():
        raise InputError(
            f"{path} is missing: it says how the model was made. Give the float model's name instead"
        )
    return load_recipe(str(path))


@torch.no_grad()
def measure_sensitivity(
    source: Source, recipe: Recipe, request: Request, *, progress: bool = True
) -> dict[str, Any]:
    """How far each layer in the recipe's bits moves a float model's answers, on synthetic pictures.

    Layers are the Linears, and the products of attentions ("blocks.0.attn"), that have fewer than 8 bits.

    Returns the report, plain values: `model`, `scheme`, `images`, `pictures`, `layers` [`name`, `weights` (their
    number), `kl_alone` and `agreement_alone` (this layer in low bits, every other in 8), `kl_gain` (the divergence that
    goes where this layer alone is kept at 8)], `kl`, `agreement` (all layers in low bits), `kl_wide` (all in 8),
    `exclude` (names to keep at 8 bits), `kl_excluded`, `agreement_excluded` (with those kept; as without where there
    are none). KL in nats from the float model, mean over images; agreement in percent. Weights are at their nearest
    codes here; rounding for images makes all divergences smaller.

    Raises UsageError for a model that is no plain ViT or a recipe of 8 bits throughout, and the errors of `zoo.load`.
    """
    vit = read_model(zoo.load(source, seed=recipe.seed), source.pretrained_cfg)
    if vit.head is None:
        raise UsageError(f"{source.name} has no classes, and sensitivity is about those it sees")
    pictures = draw_pictures(vit.config, request.images, generator_for(0, "sense", 0))
    parts = pictures.split(request.batch)
    mixtures = Mixtures(vit, recipe)
    if not mixtures.names:
        raise UsageError(
            f"{recipe.scheme} has 8 bits in every layer, and sensitivity is about fewer: say how many with --w and --a"
        )
    total = 2 * len(mixtures.names) * len(parts)
    with tqdm(total=total, unit="layer", leave=False, disable=None if progress else True) as bar:
        found = _Answers(torch.cat([vit(part, Float()) for part in parts]))
        alone = _each(mixtures, mixtures.wide, parts, bar.update)
        spared = _each(mixtures, mixtures.low, parts, bar.update)
    low, wide = (_ask(mixtures, base, (), parts) for base in (mixtures.low, mixtures.wide))
    kl = found.divergence(low)
    layers = [
        {
            "name": name,
            "weights": _count_weights(vit, name),
            "kl_alone": found.divergence(alone[name]),
            "agreement_alone": found.agreement(alone[name]),
            "kl_gain": kl - found.divergence(spared[name]),
        }
        for name in mixtures.names
    ]
    outliers = find_outliers([(layer["name"], layer["kl_alone"]) for layer in layers])
    exclude, kept = _verify(
        outliers, low, found, lambda names: _ask(mixtures, mixtures.low, names, parts)
    )
    return {
        "schema_version": SCHEMA_VERSIONS[SENSITIVITY],
        "model": source.timm_name,
        "scheme": recipe.scheme,
        "images": len(pictures),
        "pictures": "synthetic pictures (leaves)",
        "layers": layers,
        "kl": kl,
        "agreement": found.agreement(low),
        "kl_wide": found.divergence(wide),
        "exclude": exclude,
        "kl_excluded": found.divergence(kept),
        "agreement_excluded": found.agreement(kept),
    }


def find_outliers(divergences: Sequence[tuple[str, float]]) -> list[str]:
    """Names of the layers that bring more than twice what the median one does, worst first, a tenth of all at most."""
    usual = statistics.median(kl for _, kl in divergences)
    worst = sorted(divergences, key=lambda pair: -pair[1])[: max(1, int(_SHARE * len(divergences)))]
    return [name for name, kl in worst if kl > _TIMES * usual]


def _verify(
    outliers: Sequence[str], low: Tensor, found: "_Answers", ask: Callable[[Sequence[str]], Tensor]
) -> tuple[list[str], Tensor]:
    """Those of the outliers that are worth 8 bits beside the ones before them, and the logits with these kept.

    What a layer does alone is not what it does among others in low bits, whose errors it may even have made up for. So
    each is tried, and stays where the divergence falls for it beyond what chance among the images explains.
    """
    kept, logits = [], low
    for name in outliers:
        tried = ask([*kept, name])
        if _surely_positive((found.divergences(logits) - found.divergences(tried)).tolist()):
            kept, logits = [*kept, name], tried
    return kept, logits


def _surely_positive(values: Sequence[float]) -> bool:
    """Whether the mean of what was found for some images would be above 0 for others, too; one says nothing of that."""
    if len(values) < 2:
        return False
    return statistics.fmean(values) > _SURE * statistics.stdev(values) / math.sqrt(len(values))


def _ask(mixtures: Mixtures, base: ViT, names: Sequence[str], parts: Sequence[Tensor]) -> Tensor:
    """Logits of all images with these layers exchanged."""
    return torch.cat([mixtures.logits_of(base, names, part) for part in parts])


def _count_weights(vit: ViT, name: str) -> int:
    """Of a Linear; the products of an attention have none."""
    weight = getattr(vit.get_submodule(name), "weight", None)
    return 0 if weight is None else weight.numel()


@dataclass(frozen=True, slots=True)
class _Answers:
    """The float model's logits, fp32 [N, classes]."""

    logits: Tensor

    def divergences(self, others: Tensor) -> Tensor:
        """KL(float || others) of each image in nats, fp64 [N]."""
        pairs = zip(self.logits.double(), others.double(), strict=True)
        return torch.stack([soft_divergence(mine[None], other[None]) for mine, other in pairs])

    def divergence(self, others: Tensor) -> float:
        """Mean KL(float || others) in nats."""
        return float(self.divergences(others).mean())

    def agreement(self, others: Tensor) -> float:
        """Percent of images on which both have the same highest logit."""
        return 100.0 * float((self.logits.argmax(-1) == others.argmax(-1)).float().mean())


def _each(
    mixtures: Mixtures, base: ViT, parts: Sequence[Tensor], done: Callable[[], object]
) -> dict[str, Tensor]:
    """Logits of all images with one layer exchanged, for every layer; blocks before it are computed once."""
    found: dict[str, list[Tensor]] = {name: [] for name in mixtures.names}
    for part in parts:
        streams = streams_of(base, part)
        for name in mixtures.names:
            block = block_of(name)
            if name == "patch_embed.proj":
                logits = mixtures.logits_of(base, (name,), part)
            else:
                first = len(base.blocks) if block is None else block
                logits = mixtures.logits(base, (name,), streams, first)
            found[name].append(logits)
            done()
    return {name: torch.cat(logits) for name, logits in found.items()}
