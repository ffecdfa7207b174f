"""Q-ViT (Li et al. 2022): widths that are trained together with weights and scales, on the loss of the network itself.

Each choice of a Space has a real-valued width, rounded straight through; each width of a weight has scales of its own,
that are learned; gradients reach widths as quant/learned_bits.py derives. Widths begin one above what the budgets leave
to a uniform allocation, and stay as they are in the last tenth of the steps.

Without labels, the loss is KL from the float model and MimiQ's structural distance of heads, on synthetic images or the
user's, and budgets turn its gradient by HDX's rule. With labels the objective is the published one: cross-entropy, and
Q-ViT's penalty on what budgets are exceeded by. What comes out of either is rounded within them. The trained weights
are not kept: `qvit quantize` rounds the float ones, for the bits that were found.

Published are 750,000 steps of 512 images with labels. Here are eighty of eight, and two constants are for them:
the rate of widths, ten times that of weights, would not move one by a bit, and is what takes it a few bits along; and
the optimiser forgets gradients of widths in ten steps and not a thousand, or the first ones, when all budgets are
exceeded, would make those that come after count for nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qvit.distillation.objective import losses
from qvit.models.config import ViTConfig
from qvit.models.dense import Dense
from qvit.models.folding import fold
from qvit.models.learned_bits import BitsStudent
from qvit.models.plan import plan_scheme
from qvit.models.student import Teacher
from qvit.models.switching import SwitchableModel
from qvit.models.vit import ViT
from qvit.models.watching import FloatTeacher
from qvit.recipe import MAX_BITS, MIN_BITS, Distillation
from qvit.search.allocation import WIDTHS, Space
from qvit.search.bitops import count_macs
from qvit.search.budgets import Budget, check_budgets, first_within, guides
from qvit.search.sample import Sample
from qvit.search.steering import Steering, press

Note = Callable[[float], None]
PENALTY = 0.1  # the published weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How bits are trained.

    steps: Of the whole. batch: Images of each. rate: AdamW's of weights, of about 0.05 each; it falls to 0 by a cosine,
    as all do. decay: Of weights alone. travel: Bits that a width goes, at a usual gradient. heads: Weight of the heads'
    distance beside KL. penalty: Weight of Q-ViT's penalty; None for HDX. margin, growth: HDX's. frozen:
    Share of the steps, the last, in which widths stay.
    """

    steps: int = 80
    batch: int = 8
    rate: float = 2e-4
    decay: float = 0.05
    travel: float = 4.0
    heads: float = 1.0
    penalty: float | None = None
    margin: float = 0.02
    growth: float = 0.25
    frozen: float = 0.1


def train_bits(
    vit: ViT,
    space: Space,
    sample: Sample,
    budgets: Sequence[Budget],
    training: Training,
    *,
    seed: int,
    note: Note = lambda loss: None,
) -> Tensor:
    """The real-valued widths that training ends with, fp64 [choices], for a float ViT, which stays as it is.
    `fit` makes them an allocation that meets all budgets.

    seed: Of the order of images. note: Told the loss after each step. Raises UsageError for budgets that nothing meets.
    """
    check_budgets(budgets)
    student = _begin(vit, space, budgets)
    weights = torch.optim.AdamW(_groups(student, training))
    widths = _Widths(student.bits, guides(budgets, student.whole_bits()), training)
    order = torch.Generator().manual_seed(seed)
    taken: list[int] = []
    teacher, known = FloatTeacher(vit), None
    for step in range(training.steps):
        if known is None or not torch.equal(known, student.whole_bits()):
            known = student.whole_bits()
            student.take(plan_scheme(vit.config, space.recipe_of(known)))
        taken = taken or torch.randperm(len(sample.images), generator=order).tolist()
        some, taken = taken[: training.batch], taken[training.batch :]
        loss = _loss(teacher, student, sample, some, training)
        loss.backward()
        share = 0.5 * (1 + math.cos(math.pi * step / training.steps))
        for group in weights.param_groups:
            group["lr"] = share * group["most"]
        weights.step()
        if step < (1 - training.frozen) * training.steps:
            widths.move(student.bits, share)
            student.clamp()
        student.zero_grad()
        note(float(loss.detach()))
    return student.bits.detach().double()


def _begin(vit: ViT, space: Space, budgets: Sequence[Budget]) -> BitsStudent:
    """All widths one above those of the largest allocation without a search that meets the budgets."""
    config = vit.config
    plain = first_within(budgets, space.plain())
    start = (space.uniform(MIN_BITS) if plain is None else plain) + 1
    schemes = {b: plan_scheme(config, space.recipe_of(space.uniform(b))) for b in WIDTHS}
    folded = fold(vit, plan_scheme(config, space.recipe), seed=space.recipe.seed)
    model = SwitchableModel(folded, schemes, space.recipe.weights.range)
    keys = [choice.key for choice in space.choices]
    return BitsStudent(model, keys, start.clamp(max=MAX_BITS))


def _loss(
    teacher: Teacher, student: BitsStudent, sample: Sample, places: list[int], training: Training
) -> Tensor:
    """As published where there are labels; else what the float model says."""
    images = sample.images[places]
    labels = None if sample.labels is None else sample.labels[places]
    settings = Distillation(kl=1.0, heads=training.heads)
    if labels is not None:
        settings = Distillation(classes=1.0)
    terms = losses(teacher(images), student(images), labels, settings)
    return torch.stack([getattr(settings, name) * value for name, value in terms.items()]).sum()


# Of a weight that the published rate is for.
_USUAL = 0.05


def _groups(student: BitsStudent, training: Training) -> list[dict[str, object]]:
    """Parameters of the network by their rates: scales are in units of their own size, and the weights of the patch
    embedding as many times smaller as pixels are larger than normalised ones.
    """
    embed = student.vit.patch_embed
    known: set[nn.Parameter] = {student.bits, embed.proj.weight, *student.growth}
    matrices = [m.weight for m in student.vit.modules() if isinstance(m, Dense)]
    others = [p for p in student.vit.parameters() if p.requires_grad]
    groups = [
        ([embed.proj.weight], training.rate / float(embed.gain.mean()), training.decay),
        (list(student.growth), training.rate / _USUAL, 0.0),
        ([p for p in matrices if p not in known], training.rate, training.decay),
        ([p for p in others if p not in known | set(matrices)], training.rate, 0.0),
    ]
    return [{"params": p, "most": most, "weight_decay": decay} for p, most, decay in groups]


class _Widths:
    """AdamW's steps of widths, by the gradient of the loss and what budgets make of it.

    HDX's rule is stated for plain steps. Behind an optimiser that divides by the size of each entry a single step need
    not descend on what is exceeded; the margin then grows until one does. With plain steps KL of demo_vit at the costs
    of W4A4 was 0.023, and is 0.013 (seed 0): the gradients of weights, which hear of what is clipped alone, and those
    of activations are of different sizes.
    """

    def __init__(self, bits: nn.Parameter, budgets: Sequence[Budget], training: Training) -> None:
        self._budgets, self._penalty = budgets, training.penalty
        self._most = 2 * training.travel / training.steps  # the mean of a cosine's fall is half
        self._optimiser = torch.optim.AdamW([bits], betas=_MEMORY, weight_decay=0.0)
        self._steering = Steering(budgets, margin=training.margin, growth=training.growth)

    def move(self, bits: nn.Parameter, share: float) -> None:
        """By their gradient, in place; share: of the rate."""
        assert bits.grad is not None
        gradient, rounded = bits.grad.double(), bits.detach().round()
        if self._penalty is None:
            gradient = self._steering.direct(gradient, rounded)
        else:
            gradient = gradient + press_as_published(rounded, self._budgets, self._penalty)
        bits.grad = gradient.float()
        self._optimiser.param_groups[0]["lr"] = share * self._most
        self._optimiser.step()


_MEMORY = 0.9, 0.9

# G BitOps of a DeiT-T with 4 bits, and 8 at its ends: the published budget.
_PUBLISHED = 21.455


def press_as_published(bits: Tensor, budgets: Sequence[Budget], penalty: float) -> Tensor:
    """The gradient of Q-ViT's penalty by the widths of an allocation, fp64 [choices].

    The published one counts in G BitOps, of a budget of 21.455. A budget of another model or of another cost is
    counted in as many parts, so that a share too much of it is worth the same.
    """
    violations = [_PUBLISHED * budget.violation(bits) for budget in budgets]
    slopes = [_PUBLISHED / budget.limit * budget.table.slopes(bits) for budget in budgets]
    return press(violations, torch.stack(slopes), penalty)


# Of a core without AVX-512, for 10^9 multiply-accumulates of an image: float model, student, and its gradients; that is
# demo_vit's, in whose small products there is more beside them than in others.
_STEP_SECONDS = 0.9


def estimate_training(config: ViTConfig, training: Training) -> float:
    """How long it takes, in seconds, at the worst: on one core without AVX-512."""
    return training.steps * training.batch * _STEP_SECONDS * count_macs(config) / 1e9
