"""Recipes of publications, each in its own setting: images, training and quantizers, for any bit-widths.

Their quantizers are static and simulated. With `--set static=none` the same images and the same training go to qvit's
own quantizers, and the result can be packed.
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
# Shares of the published counts. Images, iterations and epochs shrink together, so that the work does by the square.
_SHARES = {"quick": 0.1, "standard": 0.3, "full": 1.0}
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
    counted = {
        "synthesis": ("images", "iterations"), "distillation": ("epochs", "renew"), "game": ("rounds",)
    }  # fmt: skip
    for name, fields in counted.items():
        stage = found.get(name)
        if stage is not None:
            counts = {field: _shrunk(field, getattr(stage, field), share) for field in fields}
            found[name] = replace(stage, **counts)
    return found


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
    GELU stay as they are.
    """
    return {
        "synthesis": game_images(),
        "game": Game(),
        "distillation": Distillation.preset("psaq-v2"),
        "static": Static(activations="minmax", softmax="float", gelu="float"),
    }


def _mimiq() -> dict[str, Any]:
    """Choi et al., AAAI 2025: 10,000 images with the published weight of 1 on the similarity of heads."""
    return {
        "synthesis": Synthesis.preset("mimiq", images=10_000, attention=1.0),
        "distillation": Distillation.preset("mimiq"),
        "static": Static(activations="lsq"),
    }


def _maskaq() -> dict[str, Any]:
    """MaskAQ (ICML 2026): MimiQ with the student in the loop; images are made anew every 30 of 200 epochs."""
    return {
        "synthesis": Synthesis.preset("maskaq", images=10_000, attention=1.0),
        "distillation": Distillation.preset("maskaq"),
        "static": Static(activations="lsq"),
    }


def _ait() -> dict[str, Any]:
    """Choi et al., CVPR 2022, on GDFQ's generator, which knows labels and nothing else. It trains the generator beside
    the student for 400 epochs of 200 batches; here the images are drawn once. Its weights are asymmetric, ours
    symmetric.
    """
    return {
        "synthesis": _generated(condition="label", centres=0.0, pairs=0.0, consistency=0.0),
        "distillation": Distillation.preset("ait"),
        "static": Static(activations="ema"),
    }


def _acq() -> dict[str, Any]:
    """ACQ (Pattern Recognition 2024), our reconstruction: a generator that is told where attention shall be."""
    return {
        "synthesis": _generated(),
        "distillation": Distillation.preset("acq"),
        "static": Static(activations="ema"),
    }


def _generated(**changes: Any) -> Synthesis:
    """Images of a generator: as many as an epoch of 200 batches of 16 shows."""
    return Synthesis.preset("acq", images=3200, **changes)


PUBLICATIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "paper-psaq": _psaq,
    "paper-psaq-v2": _psaq_v2,
    "paper-mimiq": _mimiq,
    "paper-maskaq": _maskaq,
    "paper-ait": _ait,
    "paper-acq": _acq,
}
