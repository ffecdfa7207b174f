"""Where a model computes: devices and backends, refused before anything is loaded for them."""

import torch

from qvit import machine
from qvit.errors import RequirementError, UsageError
from qvit_kernels import backends, compiled_library


def require_device(device: str) -> None:
    """Refuses a device that is unknown (UsageError) or not there (RequirementError)."""
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {device!r}; use cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise RequirementError(
            "device cuda: torch sees no CUDA device here; use the device cpu, or run `qvit doctor` "
            "to see what it finds"
        )


def resolve_backend(backend: str, device: str) -> str:
    """The backend that really runs: for "auto" what QVIT_BACKEND says, else what suits the device.

    Raises UsageError for a name that is none, RequirementError for one that cannot run here.
    """
    try:
        if backend == "auto":
            return backends.resolve(torch.device(device))
        with backends.use_backend(backend):
            return backends.resolve(torch.device(device))
    except ValueError as error:
        raise UsageError(str(error)) from error
    except backends.BackendError as error:
        raise RequirementError(str(error)) from error


def name_backend(device: str) -> str:
    """What computes there now, for times that are kept: a CPU with a compiler has programs of its own, and those of
    another version other times.

    Raises what `resolve_backend` raises.
    """
    name = resolve_backend("auto", device)
    compiled = name == "cpu" and machine.find_compiler() is not None
    return f"{name}, compiled {compiled_library.fingerprint()}" if compiled else name
