"""All cases of gpu-check: the awkward ones of every op, then every shape that is timed."""

from collections.abc import Iterator

from benchmarks.cases.kernels import BATCHES, KERNELS, MODELS, SCHEMES, Case
from benchmarks.checks.checking import Check, Make
from benchmarks.checks.heads import attention_checks, head_checks, pixel_checks
from benchmarks.checks.products import embed_checks, gelu_checks, product_checks, residual_checks
from benchmarks.checks.rows import norm_checks, row_checks

_FAMILIES = (
    row_checks,
    norm_checks,
    product_checks,
    embed_checks,
    residual_checks,
    gelu_checks,
    head_checks,
    attention_checks,
    pixel_checks,
)


def checks(*, dry: bool) -> list[Check]:
    """All cases, the ops in turn, so that what a deadline cuts is the end of every op's list and not an op."""
    lists = [list(part()) for part in _FAMILIES]
    lists.append([] if dry else list(_models()))
    longest = max(map(len, lists))
    found = [part[i] for i in range(longest) for part in lists if i < len(part)]
    return [check for check in found if check.dry or not dry]


def _models() -> Iterator[Check]:
    """Every case of `kernel_cases`: these have the tiles that speeds are measured with. Small batches first."""
    loose = {"ln_quant", "attention", "fc1"}
    for batch in BATCHES:
        for model in MODELS:
            for kernel in KERNELS:
                for scheme in SCHEMES:
                    case = Case(kernel, model, batch, scheme)
                    name = f"{_OPS[kernel]}/{case.name}"
                    yield Check(name, _timed(case), exact=kernel not in loose, large=True)


_OPS = {
    "ln_quant": "layernorm_quantize",
    "qkv": "linear_qkv",
    "attention": "attention",
    "proj": "linear_residual",
    "fc1": "linear_gelu_quantize",
    "fc2": "linear_residual",
    "product": "linear",
}


def _timed(case: Case) -> Make:
    return lambda operands: case.make(operands.device)
