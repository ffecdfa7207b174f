"""How images are made from weights: one frozen value, with a preset for every method.

Lengths in pixels are for images of 224 pixels a side and shrink with the image. Where a paper states no value, the
field's comment says what was decided, and why.
"""

from dataclasses import dataclass
from typing import Any, Self

from qvit.errors import UsageError
from qvit.recipe.fields import Ranges, check_choice, check_ranges, fill_preset

METHODS = ("noise", "leaves", "psaq", "mimiq", "maskaq", "sardfq", "bns", "acq", "folder", "real")
OPTIMISED = ("psaq", "mimiq", "maskaq", "sardfq", "bns", "acq")
ATTENTIVE = ("psaq", "mimiq", "maskaq", "sardfq")
READING = ("folder", "real")
PRECISIONS = ("float32", "bfloat16")
STARTS = ("noise", "leaves")
CONDITIONS = ("none", "label", "centre")


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthesis:
    """Everything that decides the pixels, apart from the float weights and the seed.

    Attributes:
        method: One of METHODS; `folder` and `real` are the same, the user's own images.
        start: Where pixels that are optimised begin: "noise", or pictures of overlapping shapes ("leaves").
        images: How many.
        batch: Images optimised together; each batch has its own seed.
        iterations: Steps of a batch, over all rounds; of the generator that all batches are drawn from (acq).
        rounds: Times that the learning rate starts again.
        precision: Of the network's matrix products; losses and pixels are always float32.
        lr, lr_final: Adam's rate at the start and at the end of a round, cosine between.
        warmup: Share of a round in which the rate rises linearly.
        beta1, beta2, weight_decay: AdamW's; with a decay of 0 it is Adam.
        attention: Weight of the method's own term: entropy, similarity of heads, or prior maps.
        statistics: Weight of the distance to BatchNorm's statistics (bns, and acq on a CNN).
        classes: Weight of the class prior.
        class_floor: Cross-entropy in nats below which an image is not pushed further into its class.
        smoothness: Weight of total variation.
        smoothness_low, smoothness_high: Its target is drawn between them, for 32 images of 224 x 224, and shrinks
            with the root of the number of pixels; both 0: as small as possible.
        shift, flip: Largest roll in pixels, doubled in the second half; probability of a mirror image.
        shift_diagonal: One offset for both axes.
        colour_shift: Standard deviation of a random offset per image and channel, falling to 0.
        colour_jitter: Range of random contrast and brightness per image and channel.
        sparse: Share of the remaining patches dropped at a time, those the model attends to least; 0: none.
        sparse_times, sparse_start: How often, and the share of the iterations before the first time.
        bandwidth, points: Of the kernel density (psaq).
        regions: At most so many regions with a class of their own in an image (sardfq).
        mixtures: Gaussians in a prior attention map (sardfq).
        soft_low, soft_high: Range of the wanted classes' logits (sardfq).
        alignment: Weight of the difference between teacher's and student's class-token attention (maskaq).
        focus_first, focus_last: Share of the patches that are compared in it, at the start and at the end.
        masked: Share of those patches that are left out at random in each step.
        balance: Weight of the entropy of similarities between patches' attention (maskaq).
        discrepancy: Weight of the student's distance from the teacher, which images seek (the game of psaq-v2).
        condition: What the generator is told: "none", "label", or "centre", which is the label and where attention
            shall be (acq).
        centres: Weight of the distance between that place and the centre of attention.
        pairs, pair_margin: Weight of the difference of two images of one condition, and where more is not rewarded.
        consistency: Weight of the distance between attention under learned and under the batch's own statistics.
        latent, width: Random numbers of an image, and channels of the generator's first block.
        retries: New seeds for a batch whose loss is not finite, before giving up.
        data, class_map: The user's images and the order of their classes (folder); "" for none.
        leaves: How many of the images, the last ones, are dead leaves and not the user's (folder).
        labelled: Whether the folders of those images are the model's classes; if not, they may lie anyhow, and have
            the label -1.
    """

    method: str = "noise"
    start: str = "noise"
    images: int = 32
    batch: int = 32
    iterations: int = 0
    rounds: int = 1
    precision: str = "float32"
    lr: float = 0.1
    lr_final: float = 0.0
    warmup: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    attention: float = 0.0
    classes: float = 0.0
    class_floor: float = 0.0
    smoothness: float = 0.0
    smoothness_low: float = 0.0
    smoothness_high: float = 0.0
    shift: int = 0
    shift_diagonal: bool = False
    flip: float = 0.0
    colour_shift: float = 0.0
    colour_jitter: float = 0.0
    sparse: float = 0.0
    sparse_times: int = 4
    sparse_start: float = 0.0125
    bandwidth: float = 0.01
    points: int = 10
    regions: int = 0
    mixtures: int = 5
    soft_low: float = 5.0
    soft_high: float = 10.0
    statistics: float = 0.0
    alignment: float = 0.0
    focus_first: float = 0.5
    focus_last: float = 0.1
    masked: float = 0.3
    balance: float = 0.0
    discrepancy: float = 0.0
    condition: str = "centre"
    centres: float = 0.0
    pairs: float = 0.0
    pair_margin: float = 1.0
    consistency: float = 0.0
    latent: int = 100
    width: int = 64
    retries: int = 5
    data: str = ""
    class_map: str = ""
    leaves: int = 0
    labelled: bool = True

    def __post_init__(self) -> None:
        check_choice("synthesis.method", self.method, METHODS)
        check_choice("synthesis.start", self.start, STARTS)
        check_choice("synthesis.precision", self.precision, PRECISIONS)
        check_choice("synthesis.condition", self.condition, CONDITIONS)
        check_ranges("synthesis.", self, _RANGES)
        if (self.iterations > 0) != self.optimised:
            need = "at least 1" if self.optimised else "0, for nothing is optimised"
            raise UsageError(
                f"synthesis.iterations = {self.iterations}: {self.method} needs {need}"
            )
        if self.start != "noise" and (self.generated or not self.optimised):
            raise UsageError(
                f"synthesis.start = {self.start}: {self.method} optimises no pixels; leave it out"
            )
        aims = ("attention", "statistics", "classes", "smoothness")
        if self.optimised and not any(getattr(self, name) for name in aims):
            raise UsageError(
                f"{self.method} has nothing to optimise: raise one of synthesis.{', '.join(aims)} above 0"
            )
        if self.sparse and self.method not in ATTENTIVE:
            raise UsageError(
                f"synthesis.sparse = {self.sparse}: {self.method} optimises nothing that could drop patches; "
                f"use it with {', '.join(ATTENTIVE)}"
            )
        if self.sparse and self.alignment:
            raise UsageError(
                "synthesis.sparse with synthesis.alignment: a student sees all patches; set one of them to 0"
            )
        if self.rounds > max(1, self.iterations):
            raise UsageError(
                f"synthesis.rounds = {self.rounds} of {self.iterations} iterations: lower it"
            )
        for low, high in (("smoothness_low", "smoothness_high"), ("soft_low", "soft_high")):
            if getattr(self, low) > getattr(self, high):
                raise UsageError(f"synthesis.{low} is above synthesis.{high}; exchange them")
        if self.data and self.data_free:
            raise UsageError(
                f"synthesis.data = {self.data!r}: {self.method} reads no images; "
                f"use it with {' or '.join(READING)}"
            )
        if self.leaves and (self.data_free or self.leaves >= self.images):
            raise UsageError(
                f"synthesis.leaves = {self.leaves} of {self.images} images of {self.method}: they stand beside images "
                f"of your own, one at least; use fewer, with {' or '.join(READING)}, or synthesis=leaves for no others"
            )

    @property
    def optimised(self) -> bool:
        """Whether something is optimised; noise, leaves and the user's images are not."""
        return self.method in OPTIMISED

    @property
    def generated(self) -> bool:
        """Whether images are drawn from a trained generator; pixels are not optimised one by one then."""
        return self.method == "acq"

    @property
    def data_free(self) -> bool:
        """Whether no image is read."""
        return self.method not in READING

    @property
    def images_read(self) -> int:
        """How many of the images are the user's."""
        return 0 if self.data_free else self.images - self.leaves

    @classmethod
    def preset(cls, method: str, **changes: Any) -> Self:
        """A method with its published constants, some of them replaced; where a preset departs from its publication,
        the comment beside it says so and why.

        Raises:
            UsageError: The method or a field is unknown, or a value impossible.
        """
        return fill_preset(cls, _PRESETS, method, changes, "method")


_RANGES: Ranges = (
    ("images", 1, None),
    ("leaves", 0, None),
    ("batch", 1, None),
    ("iterations", 0, None),
    ("rounds", 1, None),
    ("lr", 1e-8, 1e3),
    ("lr_final", 0, 1e3),
    ("warmup", 0, 1),
    ("beta1", 0, 0.9999),
    ("beta2", 0, 0.99999),
    ("weight_decay", 0, 1),
    ("attention", 0, 1e9),
    ("classes", 0, 1e9),
    ("class_floor", 0, 1e3),
    ("smoothness", 0, 1e9),
    ("smoothness_low", 0, 1e9),
    ("smoothness_high", 0, 1e9),
    ("shift", 0, 112),
    ("flip", 0, 1),
    ("colour_shift", 0, 10),
    ("colour_jitter", 0, 5),
    ("sparse", 0, 0.9),
    ("sparse_times", 1, 100),
    ("sparse_start", 0, 1),
    ("bandwidth", 1e-4, 10),
    ("points", 2, 1000),
    ("regions", 0, 4),
    ("mixtures", 1, 100),
    ("soft_low", 0, 100),
    ("soft_high", 0, 100),
    ("statistics", 0, 1e9),
    ("alignment", 0, 1e9),
    ("focus_first", 0, 1),
    ("focus_last", 0, 1),
    ("masked", 0, 0.99),
    ("balance", 0, 1e9),
    ("discrepancy", 0, 1e9),
    ("centres", 0, 1e9),
    ("pairs", 0, 1e9),
    ("pair_margin", 0, 1e9),
    ("consistency", 0, 1e9),
    ("latent", 1, 10_000),
    ("width", 8, 4096),
    ("retries", 0, 100),
)

# Choi et al., AAAI 2025, section on synthesis. The published weight of the similarity term is 1; but at the
# start its gradient has 2 to 4 % of the length of the class term's, and Adam goes where the sum points. ViT-Tiny,
# mean of 1 - SSIM^2 (noise 0.492, real images 0.437), 4 images: after 150 steps 0.490 with a weight of 1, 0.480
# with 10, 0.457 with 30; after 800 steps 0.449 with 10. Without colour jitter the class is reached in 100 steps,
# not 700, and what is gained is alike: 0.489, 0.467, 0.420. A floor of 1 nat under the class term gains 0.003.
_MIMIQ: dict[str, Any] = {
    "images": 1024, "batch": 16, "iterations": 2000, "lr": 0.1, "lr_final": 1e-3, "weight_decay": 1e-6,
    "attention": 10.0, "classes": 1.0, "smoothness": 2.5e-5, "shift": 8, "colour_shift": 0.5,
    "colour_jitter": 1.0,
}  # fmt: skip

_PRESETS: dict[str, dict[str, Any]] = {
    "noise": {},
    "leaves": {},
    # Li et al., ECCV 2022: two rounds of 500, warm-up 100 each, TV drawn towards 2500..3000.
    "psaq": {
        "iterations": 1000, "rounds": 2, "lr": 0.2, "warmup": 0.2, "beta1": 0.5, "beta2": 0.9,
        "attention": 1.0, "classes": 1.0, "smoothness": 0.05, "smoothness_low": 2500.0,
        "smoothness_high": 3000.0, "shift": 15, "shift_diagonal": True, "flip": 0.5,
    },
    "mimiq": _MIMIQ,
    # MaskAQ (ICML 2026) is MimiQ with two more terms, of these weights and shares. The demo ViT at 4 bits, mean of the
    # last 20 of 120 steps with them and without: alignment (at a fixed share) 2.44 and 2.54, balance 1.37 and 2.15.
    "maskaq": {**_MIMIQ, "alignment": 0.1, "balance": 1.0},
    # Zhong et al., ICCV 2025. The paper searches the weight of the prior maps from 1 to 1e5 a model, for maps that
    # sum to 1; ours are in units of the uniform map, so that 1 stands for 4e4 of theirs at 196 patches.
    "sardfq": {
        "iterations": 1000, "lr": 0.2, "beta1": 0.5, "beta2": 0.9, "attention": 1.0, "classes": 1.0,
        "smoothness": 0.05, "shift": 15, "flip": 0.5, "regions": 4,
    },
    # Yin et al., CVPR 2020: batch, rate, steps at full resolution and weight of the statistics of their example for
    # ResNet-50; moments, total variation and rolls are our choice.
    "bns": {
        "batch": 84, "images": 1024, "iterations": 2000, "lr": 0.25, "beta1": 0.5, "beta2": 0.9,
        "statistics": 0.01, "classes": 1.0, "smoothness": 1e-4, "shift": 15, "flip": 0.5,
    },
    # ACQ (Pattern Recognition 2024): our reconstruction, on GDFQ's generator (Xu et al., ECCV 2020: rate, moments).
    # With a weight of 1 the centres stay where they were, for the gradient of the other terms is a hundred times as
    # long. Mean square distance of the centre (0.06: not led at all) on the demo models: after 240 steps of the
    # ResNet's 0.070 with a weight of 1 and 0.029 with 100; after 160 of the ViT's 0.015 with 100. What it is worth,
    # on the ResNet at 4 bits with 8-bit ends, 256 images after 250 steps, one seed: KL 0.056 with these conditions and
    # 0.089 with none, calibrated; 0.049 and 0.073 after 4 epochs of distillation.
    "acq": {
        "images": 1024, "batch": 16, "iterations": 4000, "lr": 1e-3, "lr_final": 1e-5, "beta1": 0.5, "beta2": 0.999,
        "statistics": 0.03, "attention": 10.0, "classes": 1.0, "centres": 100.0, "pairs": 3.0, "consistency": 30.0,
    },
    "folder": {},
    "real": {},
}  # fmt: skip
