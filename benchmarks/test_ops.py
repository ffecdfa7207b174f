"""Ops under pytest-benchmark, the cases of the registry: pytest benchmarks/ --benchmark-json=FILE.

On a CPU the two smaller DeiTs at two batch sizes, by the `cpu` backend and its compiled path where there is one; on a
card all of them, by Triton. `--benchmark-compare` and `--benchmark-compare-fail=median:5%` hold a run against an
earlier one; `-k fc1-deit_s` picks cases. Nothing is asserted but that an op runs: whether it is right, tests/ say.
"""

import contextlib

import pytest
import torch

from benchmarks.cases.kernels import Case, all_cases
from qvit import machine
from qvit_kernels import compiled_library

_ON_CARD = torch.cuda.is_available()
DEVICE = torch.device("cuda" if _ON_CARD else "cpu")
CASES = [
    case for case in all_cases() if _ON_CARD or (case.model != "deit_b" and case.batch in (1, 8))
]


@pytest.fixture(scope="module", autouse=True)
def fast_path() -> None:
    """The compiled path of a CPU, as after `QuantViT.warmup`."""
    if not _ON_CARD:
        with contextlib.suppress(compiled_library.CompiledLibraryError):
            compiled_library.load(machine.find_compiler())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_op(benchmark, case: Case) -> None:  # noqa: ANN001 - pytest-benchmark's fixture has no public type
    """Median and spread of an op; bytes and operations stand beside them in `extra_info`."""
    call = case.make(DEVICE)

    def run() -> None:
        call("triton" if _ON_CARD else "cpu")
        if _ON_CARD:
            torch.cuda.synchronize()

    benchmark.group = f"{case.kernel} {case.model} batch {case.batch}"
    benchmark.extra_info |= {
        "scheme": case.scheme,
        "bytes": case.bytes,
        "operations": case.operations,
        "device": str(DEVICE),
    }
    with torch.inference_mode():
        benchmark.pedantic(run, rounds=20, warmup_rounds=3)
