"""Recipes of publications, each in its own setting: images, training and quantizers, for any bit-widths.

Their quantizers are static and simulated: benchmarks/publications.py runs them. With `--set static=none` the same
images and the same training go to qvit's own quantizers, and the result can be packed.

Every image is trained on, as published; `--set distillation.holdout=0.1` keeps some out, which tell how well the
student agrees with its teacher. What else departs from a publication is in its function's docstring.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from qvit.errors import UsageError
from qvit.recipe.distillation import Distillation
from qvit.recipe.fields import nearest
from qvit.recipe.game import Game, game_images
from qvit.recipe.static import Static
from qvit.recipe.synthesis import Synthesis

BUDGETS = ("quick", "standard", "full")
CUSTOM = "custom"  # counts that somebody set, of no budget
# Shares of the published counts. Images, iterations and epochs shrink together, so that the work does by the square.
_SHARES = {"quick": 0.1, "standard": 0.3, "full": 1.0}
_COUNTED = {
    "synthesis": ("images", "iterations"), "distillation": ("epochs", "renew"), "game": ("rounds",)
}  # fmt: skip
_LEAST = {"images": 32, "iterations": 50, "epochs": 4, "renew": 1, "rounds": 4}


def budget_share(budget: str) -> float:
    """The share that a budget stands for: a name of BUDGETS, or a number above 0 up to 1, such as "0.05".

    Raises:
        UsageError: It is neither.
    """
    if budget in _SHARES:
        return _SHARES[budget]
    try:
        share = float(budget)
    except ValueError:
        share = 0.0
    if 0 < share <= 1:
        return share
    raise UsageError(
        f"budget = {budget!r}{nearest(budget, BUDGETS)}: expected one of {', '.join(BUDGETS)}, or a share of the "
        "published images, iterations and epochs, such as 0.05"
    )


def scaled(stages: Mapping[str, Any], budget: str) -> dict[str, Any]:
    """The stages of a recipe with so many fewer images, iterations, epochs and rounds of a game.

    No count falls below what makes any sense (32 images, 50 iterations, 4 epochs or rounds), or below itself.
    """
    share, found = budget_share(budget), dict(stages)
    for name, fields in _COUNTED.items():
        stage = found.get(name)
        if stage is not None:
            counts = {field: _shrunk(field, getattr(stage, field), share) for field in fields}
            found[name] = replace(stage, **counts)
    return found


def recounted(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a stage that both recipes have, as plain values, has other counts in the second one."""
    return any(
        before[stage][name] != after[stage][name]
        for stage, names in _COUNTED.items()
        if before[stage] and after[stage]
        for name in names
    )


def _shrunk(field: str, count: int, share: float) -> int:
    return max(round(count * share), min(count, _LEAST[field]))


def _psaq() -> dict[str, Any]:
    """Li et al., ECCV 2022: 32 images, minimum and maximum of everything, no training.

    Softmax outputs stay as they are. The attention scores, the residual sums and the embeddings, which its code
    quantizes, do, too: they are no operand of a product.
    """
    static = Static(activations="minmax", softmax="float")
    return {"synthesis": Synthesis.preset("psaq"), "static": static}


def _psaq_v2() -> dict[str, Any]:
    """Li et al., TNNLS 2023, our reconstruction: images and student play against each other. Outputs of softmax and
    GELU stay as they are. A ResNet has BatchNorm's statistics for a prior, in place of the similarity of patches.
    """
    return {
        "synthesis": game_images(),
        "game": Game(),
        "distillation": Distillation.preset("psaq-v2", holdout=0.0),
        "static": Static(activations="minmax", softmax="float", gelu="float"),
    }


def _mimiq() -> dict[str, Any]:
    """Choi et al., AAAI 2025: 10,000 images with the published weight of 1 on the similarity of heads, and 125,000
    steps on all of them.

    The rate is that of MaskAQ's example: MimiQ has one a model, and publishes none. The weight of 10 on the structure
    of heads is its code's default. Ranges come from 32 images before the first step; its code takes them from a batch,
    and its first step in the third epoch. Grids are without its code's traps (`static.traps`). A batch without a finite
    loss is made again, not left out. The last step counts, not the epoch that is best on real images.
    """
    return {
        "synthesis": Synthesis.preset("mimiq", images=10_000, attention=1.0),
        "distillation": Distillation.preset("mimiq", holdout=0.0),
        "static": Static(activations="lsq"),
    }


def _maskaq() -> dict[str, Any]:
    """MaskAQ (ICML 2026): MimiQ with the student in the loop; images are made anew every 30 of 200 epochs.

    The first images are made without the student, whose ranges come from them (our choice); the rest departs as
    MimiQ's does.
    """
    return {
        "synthesis": Synthesis.preset("maskaq", images=10_000, attention=1.0),
        "distillation": Distillation.preset("maskaq", holdout=0.0),
        "static": Static(activations="lsq"),
    }


def _ait() -> dict[str, Any]:
    """Choi et al., CVPR 2022, on GDFQ's generator, which knows labels and nothing else: cross-entropy and a tenth of
    the distance to BatchNorm's statistics, 80,000 steps of 16 images in each of both trainings.

    What departs from it: generator and student are trained in turn, step by step, there, the first 50 of 400 epochs
    without the student's part; here one after the other, and the student sees 3200 images of the trained generator in
    400 epochs, not new ones in every step. The generator's rate falls along a cosine; the distance is a sum of norms,
    and GDFQ's of their squares. Weights are symmetric, and asymmetric there. Inundation multiplies a step by 65536 at
    most; theirs has no such end after its warm-up. A ViT, which it was not published on, has the similarity of heads
    (MimiQ's, weighted 10) in place of the statistics.
    """
    # A step of the generator makes two images a condition, whether or not they are compared.
    images = _generated(
        batch=8, condition="label", statistics=0.1, centres=0.0, pairs=0.0, consistency=0.0
    )
    return {
        "synthesis": images,
        "distillation": Distillation.preset("ait", holdout=0.0),
        "static": Static(activations="ema"),
    }


def _acq() -> dict[str, Any]:
    """ACQ (Pattern Recognition 2024), our reconstruction: a generator that is told where attention shall be. No formula
    and no weight of it is public; counts are those of GDFQ, which it is built on, and what departs from GDFQ's schedule
    does as AIT's. A step of the generator has 16 pairs. On a ViT as AIT's.
    """
    return {
        "synthesis": _generated(),
        "distillation": Distillation.preset("acq", holdout=0.0),
        "static": Static(activations="ema"),
    }


def _generated(**changes: Any) -> Synthesis:
    """Images of a generator that is trained for 400 epochs of 200 batches: as many as such an epoch shows."""
    return Synthesis.preset("acq", **{"images": 3200, "iterations": 80_000, **changes})


PUBLICATIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "paper-psaq": _psaq,
    "paper-psaq-v2": _psaq_v2,
    "paper-mimiq": _mimiq,
    "paper-maskaq": _maskaq,
    "paper-ait": _ait,
    "paper-acq": _acq,
}
