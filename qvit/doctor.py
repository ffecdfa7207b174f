"""What a bug report needs: versions, the processor, whether int8 arithmetic is exact here, and what
is missing.
"""

import os
import platform
import shutil
from pathlib import Path
from typing import Any

from qvit import __version__, machine

# Whether a variable is set changes what runs. Values are shown for the first group only: an
# endpoint or a token in a pasted bug report would be somebody's secret.
_SHOWN = (
    "QVIT_BACKEND",
    "OMP_NUM_THREADS",
    "ONEDNN_MAX_CPU_ISA",
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
)
_NAMED = ("HF_ENDPOINT", "HF_TOKEN", "HF_HOME", "HTTPS_PROXY")


def examine() -> dict[str, Any]:
    """Looks at the machine and the installation; takes a few seconds, changes nothing.

    Returns `qvit`, `python`, `packages`, `machine`, `compiler`, `gpus`, `int8` (what the self-tests
    found), `environment`, `disk`, and `problems`: sentences, empty when all is well.
    """
    packages = machine.package_versions()
    problems = [f"{name} is not installed; `pip install {name}`" for name in _missing(packages)]
    int8 = check_int8()
    problems += int8.pop("problems")
    compiler = machine.find_compiler()
    if compiler is None:
        problems.append("no C++ compiler: `qvit bench` leaves out the torch.compile variants")
    return {
        "qvit": __version__,
        "python": platform.python_version(),
        "packages": packages,
        "machine": machine.describe_machine(),
        "compiler": compiler,
        "gpus": machine.describe_gpus(),
        "int8": int8,
        "environment": {name: os.environ[name] for name in _SHOWN if name in os.environ}
        | {name: "(set)" for name in _NAMED if os.environ.get(name)},
        "disk": {"folder": str(Path.cwd()), "free_bytes": shutil.disk_usage(Path.cwd()).free},
        "problems": problems,
    }


def check_int8() -> dict[str, Any]:
    """Compares integer products with int64 arithmetic on this processor.

    `torch_int_mm`: whether torch's own product is, and pays, which the `cpu` backend needs to be fast
    (without VNNI it saturates, or is slower than fp32 products). `backends`: whether the linear layer
    of each CPU backend is, which it must be.
    """
    import torch

    from qvit_kernels import integer_matmul, ops

    problems: list[str] = []
    raw = (
        "exact"
        if integer_matmul.int8_matmul_is_exact()
        else "saturates: slower fp32 products are used"
    )
    if raw == "exact" and not integer_matmul.int8_matmul_pays():
        raw = "exact, but slow: fp32 products are used"
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (65, 1536), generator=generator, dtype=torch.int8)
    w = torch.randint(-127, 128, (63, 1536), generator=generator, dtype=torch.int8)
    x[0], w[0] = 127, 127
    expected = (x.long() @ w.long().t()).float()
    found: dict[str, str] = {}
    for name in ("cpu", "reference"):
        with ops.use_backend(name):
            codes = ops.Quantized(x, torch.ones(65, 1)), ops.Weight(w, torch.ones(63))
            found[name] = "exact" if torch.equal(ops.linear(*codes, None), expected) else "WRONG"
        if found[name] != "exact":
            problems.append(
                f"the {name} backend multiplies integers wrongly here; please report this"
            )
    return {"torch_int_mm": raw, "backends": found, "problems": problems}


def _missing(packages: dict[str, str | None]) -> list[str]:
    # Triton has no build outside Linux, and nothing on a CPU needs it.
    needed = {name for name in packages if name != "triton" or platform.system() == "Linux"}
    return [name for name, version in packages.items() if version is None and name in needed]
