"""Which implementation of the ops runs: the choice, its default from the environment, what `auto`
means."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib.util import find_spec

import torch

from qvit_kernels.notices import warn_once

BACKENDS = ("auto", "triton", "cpu", "reference")
ENVIRONMENT = "QVIT_BACKEND"

# Compute capabilities with int8 tensor cores that Triton reaches. Not 7.5: its int8 product does not compile. Not 10.3,
# whose int8 units have a thirtieth of the rate of those of 10.0.
_OLDEST = (8, 0)
_SLOW_INT8 = ((10, 3),)


class BackendError(NotImplementedError):
    """The chosen backend cannot run here; the message says why and which one can."""


_scoped: ContextVar[str | None] = ContextVar("qvit_backend", default=None)


class _Process:
    """The choice of the process. None: not made yet, the environment decides at first use."""

    name: str | None = None


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
    """The backend that computes tensors of `device`: "triton", "cpu" or "reference". `name` None: the current choice.

    Raises BackendError where the chosen one cannot.
    """
    name = backend() if name is None else _checked(name, "backend")
    if name == "reference":
        return name
    if name == "triton":
        reason = no_triton(device)
        if reason:
            raise BackendError(
                f"backend 'triton' cannot compute here: {reason}; use 'auto', 'cpu' (CPU tensors) or "
                "'reference' (any device)"
            )
        return name
    if device.type == "cpu":
        return "cpu"
    if name == "cpu":
        raise BackendError(
            f"backend 'cpu' computes CPU tensors only, got tensors on {device}; "
            "move them to the CPU, or use 'auto' or 'reference'"
        )
    reason = no_triton(device)
    if reason is None:
        return "triton"
    warn_once(
        f"the 'reference' backend computes tensors on {device}, slowly, because {reason}. Move the model to the "
        "CPU for the 'cpu' backend, or call set_backend('reference') to say that this is intended."
    )
    return "reference"


def no_triton(device: torch.device) -> str | None:
    """Why the Triton kernels cannot run on a device, as the end of a sentence; None if they can."""
    if not _has_triton():
        return "the package triton is not installed"
    if device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return None
        return "CPU tensors need Triton's interpreter (TRITON_INTERPRET=1 in the environment)"
    if device.type != "cuda" or torch.version.hip is not None:
        return f"the kernels are written for NVIDIA GPUs, and these tensors are on {device.type}"
    return _no_int8(*_capability(device.index or 0))


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return find_spec("triton") is not None


@lru_cache(maxsize=64)
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def _no_int8(major: int, minor: int) -> str | None:
    card = f"compute capability {major}.{minor}"
    if (major, minor) < _OLDEST:
        return f"{card} is older than 8.0, and Triton has no int8 product for it"
    if (major, minor) in _SLOW_INT8:
        return f"{card} has next to no int8 tensor cores"
    return None


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name
