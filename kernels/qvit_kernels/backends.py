"""Which implementation of the ops runs: the choice, its default from the environment, what `auto`
means."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

BACKENDS = ("auto", "triton", "cpu", "reference")
ENVIRONMENT = "QVIT_BACKEND"

_NO_CUDA_KERNELS = (
    "qvit_kernels has no CUDA kernels yet: CUDA tensors are computed by the 'reference' backend, "
    "which is slow. Move the model to the CPU for the 'cpu' backend, or call "
    "set_backend('reference') to say that this is intended."
)


class BackendError(NotImplementedError):
    """The chosen backend cannot run here; the message says why and which one can."""


_scoped: ContextVar[str | None] = ContextVar("qvit_backend", default=None)


class _Process:
    """The choice of the process. None: not made yet, the environment decides at first use."""

    name: str | None = None
    warned: bool = False


def backend() -> str:
    """Name of the chosen backend: the innermost `use_backend`, else `set_backend`, else QVIT_BACKEND, else "auto".

    Raises ValueError if QVIT_BACKEND names no backend.
    """
    scoped = _scoped.get()
    if scoped is not None:
        return scoped
    if _Process.name is None:
        _Process.name = _checked(os.environ.get(ENVIRONMENT) or "auto", ENVIRONMENT)
    return _Process.name


def set_backend(name: str) -> None:
    """Choose the backend of all ops of this process. Raises ValueError for a name that is not one of BACKENDS."""
    _Process.name = _checked(name, "backend")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose the backend of the ops in a `with` block, in this thread (and asyncio task) only.

    Raises ValueError for a name that is not one of BACKENDS.
    """
    token = _scoped.set(_checked(name, "backend"))
    try:
        yield
    finally:
        _scoped.reset(token)


def resolve(device: torch.device, name: str | None = None) -> str:
    """The backend that computes tensors of `device`: "cpu" or "reference". `name` None: the current choice.

    Raises BackendError where the chosen one cannot.
    """
    name = backend() if name is None else _checked(name, "backend")
    if name == "reference":
        return name
    if name == "triton":
        raise BackendError(
            "backend 'triton' has no kernels in this version of qvit_kernels; "
            "use 'auto', 'cpu' (CPU tensors) or 'reference' (any device)"
        )
    if device.type == "cpu":
        return "cpu"
    if name == "cpu":
        raise BackendError(
            f"backend 'cpu' computes CPU tensors only, got tensors on {device}; "
            "move them to the CPU, or use 'auto' or 'reference'"
        )
    if not _Process.warned:
        _Process.warned = True
        warnings.warn(_NO_CUDA_KERNELS, RuntimeWarning, stacklevel=2)
    return "reference"


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name
