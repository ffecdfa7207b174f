"""Which layers get how many bits: real-valued widths, descending on what they cost the model's answers, without data.

From Q-ViT (Li et al. 2022) are the real-valued widths, rounded straight through where budgets look at them, the scales
of every width, and BitOps; budgets turn the gradient by HDX's rule. Different is the objective: not the loss of a
network that is trained meanwhile, with labels, but the sum of what each tensor's bits cost alone (models/curvature.py,
levels.py), log-linear between whole widths. That is found once; the descent takes a second.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from qvit.models.curvature import measure_curvature
from qvit.models.floating import Float
from qvit.models.folding import fold
from qvit.models.plan import plan_scheme
from qvit.models.switching import SwitchableModel
from qvit.models.vit import ViT
from qvit.recipe import MAX_BITS, MIN_BITS
from qvit.search.allocation import WIDTHS, Space
from qvit.search.answers import PART, Answers
from qvit.search.budgets import Budget, check_budgets, first_within, fit, guides
from qvit.search.exchange import exchange, loss_of
from qvit.search.greedy import descend_greedily
from qvit.search.levels import lift
from qvit.search.steering import Steering

Direct = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How bits are searched.

    curved: Images of the curvature. batch: Of these at a time. few: That each choice is measured on where answers take
    long: of a ViT-Tiny 0.1 s an image, three hundred times.
    steps: Of descent. rate: Length of the first step over all bits, in bits per root of their number; it falls to a
    hundredth. margin, growth: HDX's, for gradients of length 1.
    """

    curved: int = 16
    batch: int = 4
    few: int = 8
    steps: int = 400
    rate: float = 0.05
    margin: float = 0.02
    growth: float = 0.05


@dataclass(frozen=True, slots=True)
class Found:
    """What a search ended with.

    Attributes:
        bits: int64 [choices], an allocation that meets every budget.
        divergence: KL from the float model on the images, nats, weights rounded to nearest.
        uniform: The same of the largest allocation that needs no search (`Space.plain`) and meets the budgets; None
            where none does.
    """

    bits: Tensor
    divergence: float
    uniform: float | None


class Searcher:
    """Measures a float ViT at different bits, and finds an allocation.

    space: What is to be found. images: normalised fp32 [N, C, H, W]. seed: Of the signs that are drawn.
    """

    def __init__(
        self, vit: ViT, space: Space, images: Tensor, *, seed: int, settings: Settings
    ) -> None:
        config = vit.config
        widths = {b: plan_scheme(config, space.recipe_of(space.uniform(b))) for b in WIDTHS}
        folded = fold(vit, plan_scheme(config, space.recipe), seed=space.recipe.seed)
        self._space, self._images, self._settings, self._seed = space, images, settings, seed
        self._model = SwitchableModel(folded, widths, space.recipe.weights.range)
        self._answers = Answers(self._model, config, space.recipe)
        self._measured: dict[tuple[int, ...], float] = {}
        with torch.no_grad():
            self._expected = torch.cat([vit(some, Float()) for some in images.split(PART)])

    @cached_property
    def losses(self) -> Tensor:
        """What each choice costs alone at 2 to 8 bits, nats: fp64 [choices, 7], by curvature, at the level that is
        measured. Found when it is first asked for.
        """
        self._model.restore()
        found = measure_curvature(
            self._model,
            self._images[: self._settings.curved],
            _MEASURED,
            batch=self._settings.batch,
            generator=torch.Generator().manual_seed(self._seed),
            heads=self._space.heads,
        )
        curved = torch.stack([found[choice.key] for choice in self._space.choices])
        # settled activations have eight bits meanwhile: what few do would drown what is asked of weights
        settled = self._space.recipe.override([f"activations.bits={MAX_BITS}"])
        return lift(_fill(curved), partial(self._error, replace(self._space, recipe=settled)))

    def _error(self, space: Space, bits: Tensor) -> float:
        """The squared error of the logits that an allocation causes, whatever is common to all classes left out."""
        found, expected = self._ask(space, bits, self._settings.few)
        error = found - expected
        return float((error - error.mean(-1, keepdim=True)).double().square().mean())

    def measure(self, bits: Tensor | Sequence[int]) -> float:
        """KL from the float model, nats, of an allocation, a mean over all images; over as many as the curvature has
        where answers take long.
        """
        key = tuple(map(int, bits))
        if key not in self._measured:
            asked = self._ask(self._space, bits, self._settings.curved)
            found, expected = (logits.log_softmax(-1) for logits in asked)
            each = (expected.exp() * (expected - found)).sum(-1)
            self._measured[key] = float(each.double().mean())
        return self._measured[key]

    @property
    def asked(self) -> int:
        """How many images `measure` asks about."""
        return (
            len(self._images)
            if self._answers.fast
            else min(self._settings.curved, len(self._images))
        )

    def _ask(self, space: Space, bits: Tensor | Sequence[int], few: int) -> tuple[Tensor, Tensor]:
        """Logits of an allocation, and of the float model, on all images; on a few where answers take long."""
        count = len(self._images) if self._answers.fast else few
        recipe = space.recipe_of(bits)
        return self._answers(self._images[:count], recipe), self._expected[:count]

    def answer(self, images: Tensor, bits: Tensor | Sequence[int]) -> Tensor:
        """Logits fp32 [N, classes] of images [N, C, H, W] and an allocation, weights at their nearest codes."""
        return self._answers(images, self._space.recipe_of(bits))

    def search(self, budgets: Sequence[Budget]) -> Found:
        """An allocation that meets every budget, close to the float model; never one worse than that of a preset, or
        the same bits everywhere.

        Raises UsageError for a budget that nothing meets.
        """
        return self.judge(self.find(budgets), budgets)

    def judge(self, bits: Tensor, budgets: Sequence[Budget]) -> Found:
        """What an allocation is worth that meets the budgets, and one that needs no search in its place if that is
        worth more.
        """
        divergence = self.measure(bits)
        plain = first_within(budgets, self._space.plain())
        if plain is None:
            return Found(bits, divergence, None)
        otherwise = self.measure(plain)
        if otherwise < divergence:
            return Found(plain, otherwise, otherwise)
        return Found(bits, divergence, otherwise)

    def find(self, budgets: Sequence[Budget]) -> Tensor:
        """An allocation that meets every budget, int64 [choices]; by `losses` alone, without a measurement of it.

        Exchanges begin at both ends, where the descent leads and where the cheapest bits go first from eight down: the
        latter came out lower in five of six cells of a ViT-Tiny, by 1 to 2 % at three bits, and KL with it by 2 to 8 %.

        Raises UsageError for budgets that nothing meets.
        """
        check_budgets(budgets)
        plain = first_within(budgets, self._space.plain())
        start = self._space.uniform(MIN_BITS) if plain is None else plain
        limits = guides(budgets, start)
        wanted = descend(self.losses, start.double(), limits, self._settings)
        begun = fit(wanted, budgets), descend_greedily(self.losses, budgets)
        ends = [exchange(bits, self.losses, budgets) for bits in begun]
        return min(ends, key=lambda bits: float(loss_of(self.losses, bits).sum()))


# The others are put between their neighbours, on the lines that a descent follows.
_MEASURED = (2, 3, 4, 6, 8)


def _fill(measured: Tensor) -> Tensor:
    """Losses of all widths, fp64 [choices, 7], of those of the measured ones: log-linear in between."""
    logs = measured.clamp(min=_LEAST_LOSS).log()
    columns = []
    for bits in WIDTHS:
        above = next(place for place, known in enumerate(_MEASURED) if known >= bits)
        low, high = _MEASURED[max(above - 1, 0)], _MEASURED[above]
        share = (bits - low) / (high - low) if high > low else 1.0
        columns.append(logs[:, above - 1] * (1 - share) + logs[:, above] * share)
    return torch.stack(columns, 1).exp()


def descend(
    losses: Tensor,
    bits: Tensor,
    budgets: Sequence[Budget],
    settings: Settings,
    direct: Direct | None = None,
) -> Tensor:
    """Real-valued bits of small loss near the budgets' bounds, the mean over the last half of the way.

    losses: fp64 [choices, 7], positive, at 2 to 8 bits; bits: fp64 [choices], where to begin. direct: From the gradient
    of the losses, and the allocation nearby, to the direction to descend along; None: by HDX's rule.
    """
    if direct is None:
        direct = Steering(budgets, margin=settings.margin, growth=settings.growth).direct
    logs = losses.clamp(min=_LEAST_LOSS).log()
    mean = torch.zeros_like(bits)
    for step in range(settings.steps):
        direction = direct(_slopes(logs, bits), bits.round())
        length = settings.rate * len(bits) ** 0.5 * 0.01 ** (step / settings.steps)
        bits = (bits - length * direction).clamp(MIN_BITS, MAX_BITS)
        if 2 * step >= settings.steps:
            mean += bits / math.ceil(settings.steps / 2)
    return mean


_LEAST_LOSS = 1e-12  # nats; nothing that costs less matters, and its logarithm would


def _slopes(logs: Tensor, bits: Tensor) -> Tensor:
    """Derivative by real-valued bits of a sum of losses that are log-linear between whole widths."""
    below = bits.floor().clamp(max=MAX_BITS - 1).long() - MIN_BITS
    low, high = (logs.gather(1, place.unsqueeze(1)).squeeze(1) for place in (below, below + 1))
    share = bits - MIN_BITS - below
    return (low + share * (high - low)).exp() * (high - low)
