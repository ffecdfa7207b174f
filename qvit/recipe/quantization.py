"""How a float model becomes integers: the recipe, and its YAML."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from qvit.errors import InputError, UsageError
from qvit.recipe.bits import MAX_BITS, MAX_GROUPED_BITS, check_bits, find_bits, read_bits
from qvit.recipe.distillation import Distillation
from qvit.recipe.fields import build, check_choice, nearest
from qvit.recipe.game import Game
from qvit.recipe.parts import Activations, Attention, Transforms, Weights
from qvit.recipe.presets import ENDS, PRESETS
from qvit.recipe.publications import CUSTOM, PUBLICATIONS, budget_share, recounted, scaled
from qvit.recipe.settings import apply_settings
from qvit.recipe.static import Static
from qvit.recipe.synthesis import Synthesis

RESIDUALS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the bytes of a quantized model, apart from the float weights.

    `budget`: what the counts of images, iterations and epochs come from: a name, a share of the published ones, or
    "custom" where settings, or a user's images, have changed them; what a stage that was added has is its own.
    `layers`: bits of single layers, by patterns of their names: {"blocks.*.mlp.fc2": "W4A8", "head": "W8"}; where two
    match, the later one holds. "blocks.*.attn" are the attention products: "A4", of Q, K, V and the softmax numerators.
    Weights of heads may differ: "W4,4,3A4" in "blocks.0.attn.proj" of three heads, which are slices of its columns; in
    "blocks.0.attn.qkv" slices of its rows, those of Q of every head, then those of K, then those of V.
    `synthesis`: the images that are made first; None for none.
    `distillation`: how the low-bit model is trained after the float one, on those images; None: it is not.
    `game`: images and student move in turn (PSAQ-ViT V2) in place of one after the other; None: they do not.
    `static`: the quantizers of a publication in place of qvit's own, for simulation only; None: qvit's own.
    """

    name: str = "qvit"
    seed: int = 0
    budget: str = "standard"
    weights: Weights = field(default_factory=Weights)
    activations: Activations = field(default_factory=Activations)
    attention: Attention = field(default_factory=Attention)
    transforms: Transforms = field(default_factory=Transforms)
    residual: str = "float32"
    layers: dict[str, str] = field(default_factory=dict, hash=False)
    synthesis: Synthesis | None = None
    distillation: Distillation | None = None
    game: Game | None = None
    static: Static | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed = {self.seed}: expected a whole number from 0 to 2^63 - 1")
        if self.budget != CUSTOM:
            budget_share(self.budget)
        check_choice("residual", self.residual, RESIDUALS)
        self._check_groups()
        if self.weights.rounding != "nearest" and self.synthesis is None:
            raise UsageError(
                f"weights.rounding = {self.weights.rounding} needs images: say how they are made with --set "
                "synthesis=METHOD"
            )
        if self.distillation is not None and self.synthesis is None:
            raise UsageError(
                "distillation needs images: say how they are made with --set synthesis=METHOD"
            )
        if self.game is not None and self.distillation is None:
            raise UsageError(
                "a game needs to know how the student learns: --set distillation=psaq-v2, or --set game=none"
            )
        if self.static is not None:
            self._check_static()

    def _check_groups(self) -> None:
        bits = [read_bits(pattern, text).weights for pattern, text in self.layers.items()]
        fewest = min(self.weights.bits, *(min(b) for b in bits if b is not None), MAX_BITS)
        if self.weights.group and fewest > MAX_GROUPED_BITS:
            raise UsageError(
                f"weights.group = {self.weights.group} at {fewest} bits: weights of more than {MAX_GROUPED_BITS} bits"
                " have one scale per output channel; set weights.group=0"
            )

    def _check_static(self) -> None:
        """Static quantizers have a scale a tensor and nothing else; what they would ignore is refused."""
        a, t = self.activations, self.transforms
        ignored = {
            "layers": self.layers,
            "weights.group": self.weights.group,
            "weights.rounding": self.weights.rounding != "nearest",
            "activations.prefix_bits": a.prefix_bits,
            "activations.norm_group": a.norm_group,
            "activations.proj_group": a.proj_group,
            "activations.fc2_group": a.fc2_group,
            **{f"transforms.{name}": getattr(t, name) for name in ("norm", "fc2", "qk", "v")},
        }
        found = next((name for name, value in ignored.items() if value), None)
        if found is not None:
            raise UsageError(
                f"{found} belongs to qvit's own quantizers, and the recipe has static ones: set it to 0, false or "
                "nearest, or begin with --recipe plain"
            )

    @property
    def scheme(self) -> str:
        """The scheme's short name, as publications have it: W4A8 whatever the ends have; "W4A8 mixed" where some layers
        of blocks have bits of their own.
        """
        mixed = " mixed" if self.layers.keys() - ENDS.keys() else ""
        return f"W{self.weights.bits}A{self.activations.bits}{mixed}"

    def layer_bits(self, name: str) -> tuple[tuple[int, ...], int]:
        """Bits of the weights, of each head or one number for all, and of the input of the Linear of this name."""
        bits = find_bits(self.layers, name)
        return bits.weights or (self.weights.bits,), bits.activations or self.activations.bits

    def attention_bits(self, name: str) -> tuple[int, int]:
        """Bits of Q, K and V, and of the softmax numerators, of the attention of this name, "blocks.0.attn"."""
        bits = find_bits(self.layers, name).activations
        return bits or self.attention.bits, bits or self.attention.softmax_bits

    @classmethod
    def preset(
        cls,
        name: str,
        *,
        weight_bits: int = 8,
        activation_bits: int = 8,
        budget: str | None = None,
    ) -> Self:
        """A named recipe at the given bit-widths.

        `budget`: how much of the published images, iterations and epochs a publication's recipe has; all of them by
        default. Raises UsageError for an unknown name or budget, or impossible bits.
        """
        if name not in PRESETS:
            raise UsageError(
                f"unknown recipe {name!r}{nearest(name, PRESETS)}; "
                f"known: {', '.join(PRESETS)}, or the path of a recipe.yaml"
            )
        check_bits("--w", weight_bits)
        check_bits("--a", activation_bits)
        parts = PRESETS[name](weight_bits, activation_bits)
        published = "full" if name in PUBLICATIONS else "standard"
        return cls(name=name, budget=budget or published, **scaled(parts, budget or published))

    def with_open_ends(self) -> Self:
        """Without the 8 bits that presets give the ends of a model, for a search to find theirs, too."""
        layers = {name: bits for name, bits in self.layers.items() if ENDS.get(name) != bits}
        return dataclasses.replace(self, layers=layers)

    def without_images(self) -> Self:
        """The same grids with every weight at its nearest code: nothing is made, and nothing learned."""
        weights = dataclasses.replace(self.weights, rounding="nearest")
        return dataclasses.replace(
            self, weights=weights, synthesis=None, distillation=None, game=None
        )

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, in the order of the fields."""
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        """The recipe as YAML that `from_yaml` reads back to an equal value."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Raises UsageError for an unknown key (with the nearest spelling) or a value of the wrong type."""
        return build(cls, values)

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        """Raises UsageError for anything that is not a recipe."""
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"the recipe is not valid YAML: {error}") from error
        if not isinstance(values, Mapping):
            raise UsageError(
                "the recipe must be a YAML mapping, such as one written by `qvit quantize`"
            )
        return cls.from_dict(values)

    def override(self, settings: Iterable[str]) -> Self:
        """Apply `key=value` settings such as `weights.group=16` or `layers.head=W8A8`; values are read as YAML.

        A recipe whose images, iterations, epochs or rounds they change has the budget "custom": it was another's.
        """
        values = self.to_dict()
        apply_settings(values, settings)
        if values["budget"] == self.budget and recounted(self.to_dict(), values):
            values["budget"] = CUSTOM
        return self.from_dict(values)


def load_recipe(
    name_or_path: str,
    weight_bits: int | None = None,
    activation_bits: int | None = None,
    budget: str | None = None,
) -> Recipe:
    """A preset by name, or a recipe file; given bit-widths replace those of the file.

    A budget scales the counts of a preset; those of a file are what they are, and keep the name of theirs.

    In a file, `activation_bits` sets activations and attention alike, as a preset does.
    """
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"} and not path.is_file():
        return Recipe.preset(
            name_or_path,
            weight_bits=8 if weight_bits is None else weight_bits,
            activation_bits=8 if activation_bits is None else activation_bits,
            budget=budget,
        )
    try:
        recipe = Recipe.from_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, UsageError) as error:
        raise InputError(f"cannot use the recipe {path}: {error}") from error
    if budget is not None and recipe.synthesis is not None:
        raise UsageError(
            f"--budget {budget}: the recipe {path} says how many images and epochs it has; change those with --set"
        )
    settings = [] if budget is None else [f"budget={budget}"]
    if weight_bits is not None:
        settings.append(f"weights.bits={weight_bits}")
    if activation_bits is not None:
        settings.append(f"activations.bits={activation_bits}")
        if recipe.attention == Attention(
            bits=recipe.activations.bits, softmax_bits=recipe.activations.bits
        ):
            names = ("attention.bits", "attention.softmax_bits")
            settings += [f"{name}={activation_bits}" for name in names]
    return recipe.override(settings)


def preset_names() -> tuple[str, ...]:
    """Names that `--recipe` knows."""
    return tuple(PRESETS)
