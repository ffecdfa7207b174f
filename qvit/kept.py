"""What verbs keep in a quantized folder and beside it, in the words that those who write it and those who read it
share: names of files and folders, versions of schemas, and the names of variants in a latency report.
"""

from pathlib import Path

EVALUATION, LATENCY, SENSITIVITY = "eval.json", "bench.json", "sense.json"
# Of the files that say so; one of another version is refused.
SCHEMA_VERSIONS = {LATENCY: 3, SENSITIVITY: 1}

# The float model's precisions, by the names of their variants, and torch's names of the dtypes.
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# Among the float variants that a row is compared with: the one that is the fastest at that batch size.
BEST_FLOAT = "best_float"

_OWN, _COMPILED = "qvit-", "-compile"
_IMAGES = "-images"


def name_own(scheme: str, backend: str) -> str:
    """The variant that a quantized folder is on one backend: "qvit-w4a8-cpu"."""
    return f"{_OWN}{scheme.lower().replace(' ', '-')}-{backend}"


def is_own(variant: str) -> bool:
    """Whether a variant is the quantized folder itself."""
    return variant.startswith(_OWN)


def is_float(variant: str) -> bool:
    """Whether a variant is the float model, in whatever precision."""
    return variant.removesuffix(_COMPILED) in PRECISIONS


def compiled_twin(variant: str) -> str:
    """The float variant of the same precision, compiled: without it, no speed-up over `variant` is stated."""
    return f"{variant.removesuffix(_COMPILED)}{_COMPILED}"


def images_beside(out: Path) -> Path:
    """Where the optimised images of a model that is written to `out` are: out/deit_s-w4a4-images."""
    return out.with_name(f"{out.name}{_IMAGES}")


def rounding_beside(out: Path) -> Path:
    """Where the finished blocks of a model are whose rounding is learned: out/deit_s-w4a4-rounding."""
    return out.with_name(f"{out.name}-rounding")


def training_beside(out: Path) -> Path:
    """Where state and log of a model's training are: out/deit_s-w4a4-training."""
    return out.with_name(f"{out.name}-training")


def model_beside(images: Path) -> Path | None:
    """The model that a folder of images lies beside, by its name; None for images that were made for none."""
    name = images.resolve().name
    return (
        images.resolve().with_name(name.removesuffix(_IMAGES)) if name.endswith(_IMAGES) else None
    )
