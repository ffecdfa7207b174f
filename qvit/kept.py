"""What verbs keep beside a quantized model, in the words that those who write it and those who read it share: names of
files, the versions of their schemas, and the names of variants in a latency report.
"""

EVALUATION, LATENCY, SENSITIVITY = "eval.json", "bench.json", "sense.json"
# Of the files that say so; one of another version is refused.
SCHEMA_VERSIONS = {LATENCY: 3, SENSITIVITY: 1}

# The float model's precisions, by the names of their variants, and torch's names of the dtypes.
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# Among the float variants that a row is compared with: the one that is the fastest at that batch size.
BEST_FLOAT = "best_float"

_OWN, _COMPILED = "qvit-", "-compile"


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
