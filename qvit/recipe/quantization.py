"""How a float model becomes integers: the recipe, its parts, its presets, and its YAML."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from qvit.errors import InputError, UsageError
from qvit.recipe.bits import MAX_BITS, MAX_GROUPED_BITS, check_bits, find_bits, read_bits
from qvit.recipe.distillation import Distillation
from qvit.recipe.fields import build, check_choice, nearest
from qvit.recipe.game import Game
from qvit.recipe.publications import PUBLICATIONS, budget_share, scaled
from qvit.recipe.reconstruction import Reconstruction
from qvit.recipe.settings import apply_settings
from qvit.recipe.static import Static
from qvit.recipe.synthesis import Synthesis

RANGES = ("mse", "minmax")
ROUNDINGS = ("nearest", "gptq", "learned")
RESIDUALS = ("float32", "float16", "bfloat16")


def _check_size(name: str, value: int) -> None:
    if value < 0:
        raise UsageError(f"{name} = {value}: expected 0 (off) or a positive number of channels")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Symmetric weights, one scale per output channel; with a `group`, every so many input channels of it have an
    integer multiple of that scale for a step (0: no groups).

    `rounding`: each weight to its nearest code, or together, for the inputs that the recipe's images cause: a Linear
    after the other, in closed form ("gptq"), or a block after the other, by gradients ("learned").
    `damping`: of gptq; the share of the mean second moment of a Linear's inputs that is added to each.
    `reconstruction`: of learned.
    """

    bits: int = 8
    group: int = 0
    range: str = "mse"
    rounding: str = "nearest"
    damping: float = 0.3
    reconstruction: Reconstruction = field(default_factory=Reconstruction)

    def __post_init__(self) -> None:
        check_bits("weights.bits", self.bits)
        _check_size("weights.group", self.group)
        check_choice("weights.range", self.range, RANGES)
        check_choice("weights.rounding", self.rounding, ROUNDINGS)
        if not 0 < self.damping <= 10:
            raise UsageError(
                f"weights.damping = {self.damping}: expected a share above 0, up to 10, such as 0.3"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """Inputs of the Linears: symmetric, dynamic, per token.

    `norm_group`, `proj_group` and `fc2_group`: channels that share a scale in what LayerNorms hand on (to qkv, fc1 and
    the head), and in the inputs of proj and fc2 (0: the whole token). A group that does not divide the width is
    replaced by the largest divisor below it; that of proj is a whole number of heads, and one head at least.
    `prefix_bits`: of the class, distillation and register tokens, in what the Linears of blocks read: 8, or 0 for
    `bits`.
    """

    bits: int = 8
    prefix_bits: int = 0
    norm_group: int = 0
    proj_group: int = 0
    fc2_group: int = 0

    def __post_init__(self) -> None:
        check_bits("activations.bits", self.bits)
        if self.prefix_bits not in (0, MAX_BITS):
            raise UsageError(
                f"activations.prefix_bits = {self.prefix_bits}: expected {MAX_BITS}, or 0 for those of the other tokens"
            )
        _check_size("activations.norm_group", self.norm_group)
        _check_size("activations.proj_group", self.proj_group)
        _check_size("activations.fc2_group", self.fc2_group)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Both attention products. `bits`: Q, K and V, per token and head; `softmax_bits`: the softmax numerators."""

    bits: int = 8
    softmax_bits: int = 8

    def __post_init__(self) -> None:
        check_bits("attention.bits", self.bits)
        check_bits("attention.softmax_bits", self.softmax_bits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transforms:
    """Orthogonal transforms that spread outliers; all are undone in the neighbouring weights.

    `norm`, `fc2`: block size of the signed Hadamard on LayerNorm outputs and on the fc2 input (0: none).
    `qk`, `v`: one rotation a head for Q and K, and for V (undone in proj), folded offline.
    A block that does not divide the width is replaced by a divisor below it, see quant.transforms.fitting_block.
    """

    norm: int = 0
    fc2: int = 0
    qk: bool = False
    v: bool = False

    def __post_init__(self) -> None:
        _check_size("transforms.norm", self.norm)
        _check_size("transforms.fc2", self.fc2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the bytes of a quantized model, apart from the float weights.

    `layers`: bits of single layers, by patterns of their names: {"blocks.*.mlp.fc2": "W4A8", "head": "W8"}; where two
    match, the later one holds. "blocks.*.attn" are the attention products: "A4", of Q, K, V and the softmax numerators.
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
        fewest = min(self.weights.bits, *(b for b in bits if b is not None), MAX_BITS)
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
        mixed = " mixed" if self.layers.keys() - _ENDS.keys() else ""
        return f"W{self.weights.bits}A{self.activations.bits}{mixed}"

    def layer_bits(self, name: str) -> tuple[int, int]:
        """Bits of weights and input of the Linear of this name."""
        bits = find_bits(self.layers, name)
        return bits.weights or self.weights.bits, bits.activations or self.activations.bits

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
        if name not in _PRESETS:
            raise UsageError(
                f"unknown recipe {name!r}{nearest(name, _PRESETS)}; "
                f"known: {', '.join(_PRESETS)}, or the path of a recipe.yaml"
            )
        check_bits("--w", weight_bits)
        check_bits("--a", activation_bits)
        parts = _PRESETS[name](weight_bits, activation_bits)
        published = "full" if name in PUBLICATIONS else "standard"
        return cls(name=name, budget=budget or published, **scaled(parts, budget or published))

    def with_open_ends(self) -> Self:
        """Without the 8 bits that presets give the ends of a model, for a search to find theirs, too."""
        layers = {name: bits for name, bits in self.layers.items() if _ENDS.get(name) != bits}
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
        """Apply `key=value` settings such as `weights.group=16` or `layers.head=W8A8`; values are read as YAML."""
        values = self.to_dict()
        apply_settings(values, settings)
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
    return tuple(_PRESETS)


def _qvit(weight_bits: int, activation_bits: int) -> dict[str, Any]:
    """The default: the best that the project knows at these bit-widths.

    The inputs of proj and fc2 have a scale for each 128 columns at any width: what shares a scale is then in one
    program of a GPU, which takes seven launches a block, and eight or nine with a scale a token.
    """
    activations = Activations(bits=activation_bits, proj_group=128, fc2_group=128)
    if weight_bits >= 8 and activation_bits >= 8:
        # KL on 500 development images 0.00208 without transforms; rotations of heads, folded offline, 0.00188; and the
        # LayerNorms' Hadamard, 2 % of the time on a CPU, 0.00143. That of fc2, another 4 %, would make it 0.00097.
        return {
            "weights": Weights(bits=weight_bits),
            "activations": activations,
            "attention": Attention(bits=activation_bits, softmax_bits=activation_bits),
            "transforms": Transforms(norm=64, qk=True, v=True),
        }
    # Mean KL of three seeds on 500 development images, W4A8 and W4A4 (kernels/README.md, Decisions): weight groups none
    # 0.225, 0.436; 64 0.135, 0.329; 32 0.106, 0.285; 16 0.092, 0.272. One scale a token in proj and fc2: 0.107, 0.361.
    # Both attention products take int8 operands whatever their bits: 8 of them cost nothing, and take W4A4 from 0.285
    # to 0.242.
    # Weights rounded for leaves (gptq), KL on 500 development images (benchmarks/README.md, Rounding): W4A8 0.107 to
    # 0.089, W4A4 0.219 to 0.208, W3A3 2.10 to 1.62; real images 0.075, 0.185, 1.46; noise at best as good as none. 32,
    # 64 and 128 leaves are alike.
    # Both ends at 8 bits take W4A4 from 0.198 to 0.162, and agreement from 83.2 to 86.2 % (seed 0).
    # 3 bits and fewer are short of levels, and finer scales pay. W3A3, KL on 125 development images, seed 0: ends alone
    # 1.16, and groups of 64 after LayerNorms, of 16 in weights 1.01, and of 64 in fc2 0.90 (benchmarks/README.md, Three
    # bits).
    few = min(weight_bits, activation_bits) <= 3
    if few and activation_bits < 8:
        # The class token is one of 197, and the logits are read from it: with 8 bits in it the KL of a ViT-Tiny W3A3 on
        # 500 development images was 0.808 and not 0.921 (paired difference +-0.025).
        prefix_bits = MAX_BITS if activation_bits <= 3 else 0
        activations = Activations(
            bits=activation_bits,
            prefix_bits=prefix_bits,
            norm_group=64,
            proj_group=64,
            fc2_group=64,
        )
    weight_group = (16 if few else 32) if weight_bits <= 4 else 0
    rounding = "gptq" if weight_bits < 8 else "nearest"
    return {
        "weights": Weights(bits=weight_bits, group=weight_group, rounding=rounding),
        "activations": activations,
        "attention": Attention(),
        "transforms": Transforms(norm=64, fc2=32, qk=True, v=True),
        "layers": dict(_ENDS),
        "synthesis": Synthesis.preset("leaves", images=200) if rounding == "gptq" else None,
    }


# The ends of a ViT, which publications often leave at 8 bits, too: 6 % of the weights of a ViT-Tiny, 2 % of a ViT-B.
_ENDS = {"patch_embed.proj": "W8", "head": "W8A8", "head_dist": "W8A8"}


def _plain(weight_bits: int, activation_bits: int) -> dict[str, Any]:
    """One scale a token or channel and no transform: what a quantizer without tricks does."""
    return {
        "weights": Weights(bits=weight_bits, range="minmax"),
        "activations": Activations(bits=activation_bits),
        "attention": Attention(bits=activation_bits, softmax_bits=activation_bits),
    }


def _published(name: str) -> Callable[[int, int], dict[str, Any]]:
    """Plain quantizers, and what the publication makes of them."""
    return lambda weight_bits, activation_bits: {
        **_plain(weight_bits, activation_bits),
        **PUBLICATIONS[name](),
    }


_PRESETS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "qvit": _qvit,
    "plain": _plain,
    **{name: _published(name) for name in PUBLICATIONS},
}
