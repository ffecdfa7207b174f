"""What makes a model fast on a CPU: its compiled programs, made when first needed and kept beside the model.

They are no part of it: a copy, a pickle and a state_dict know nothing of them, and a copy makes its own.
"""

import threading
import warnings
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from qvit import machine
from qvit.deployment.compiled_vit import CompiledViT
from qvit.models.vit import ViT
from qvit_kernels import compiled_library
from qvit_kernels.compiled_library import CompiledLibraryError

_T = TypeVar("_T")


class _Idle:
    """Programs of one model that no thread is using at the moment; `refused`: the config that they cannot take."""

    def __init__(self) -> None:
        self.programs: list[CompiledViT] = []
        self.refused: object = None


_lock = threading.Lock()
_idle: WeakKeyDictionary[ViT, _Idle] = WeakKeyDictionary()


def prepare(vit: ViT) -> str | None:
    """Build the compiled path, where this machine has a compiler and AVX512-VNNI, and the programs of a model.

    Returns None, or the reason why the model goes on without, which it also warns of.
    """
    try:
        compiled_library.load(machine.find_compiler())
        _give_back(vit, _take(vit) or CompiledViT(vit, torch.get_num_threads()))
    except (CompiledLibraryError, ValueError) as error:
        reason = str(error)
        warnings.warn(
            f"this model runs without the compiled CPU path: {reason}", RuntimeWarning, stacklevel=3
        )
        return reason
    return None


def logits(vit: ViT, images: Tensor) -> Tensor | None:
    """images: float [B, C, H, W] on the CPU. Returns fp32 [B, classes], or None where no program does it."""
    return _run(vit, images, CompiledViT.logits)


def features(vit: ViT, images: Tensor) -> Tensor | None:
    """images: float [B, C, H, W] on the CPU. Returns what the last block leaves, fp32 [B, T, D], or None likewise."""
    return _run(vit, images, CompiledViT.features)


def layer_seconds(vit: ViT, images: Tensor) -> dict[str, float] | None:
    """What each layer has of the time that a pass over images fp32 [B, C, H, W] takes, in seconds, up to the last block
    where `logits` gives none; None where no program does it.

    A program's clock gives the seconds an image of one thread, and images of a batch are shared among threads: a pass
    takes them as often as the thread with the most images.
    """

    def time(program: CompiledViT, images: Tensor) -> dict[str, float]:
        turns = -(-images.shape[0] // min(program.threads, images.shape[0]))
        seconds: dict[str, float] = {}
        for layer, taken in program.time_layers(images):
            seconds[layer] = seconds.get(layer, 0.0) + turns * taken
        return seconds

    return _run(vit, images, time)


def covers(vit: ViT) -> bool:
    """Whether passes of a model go through a program at present."""
    if compiled_library.loaded() is None or _is_watched(vit):
        return False
    program = _take(vit)
    if program is None:
        return False
    _give_back(vit, program)
    return True


def _run(vit: ViT, images: Tensor, compute: Callable[[CompiledViT, Tensor], _T]) -> _T | None:
    if compiled_library.loaded() is None or _is_watched(vit):
        return None
    # a tensor of another kind may have no memory
    if type(images) is not Tensor or not images.shape[0]:
        return None
    program = _take(vit)
    if program is None:
        return None
    try:
        return compute(program, images.float().contiguous())
    finally:
        _give_back(vit, program)


def _is_watched(vit: ViT) -> bool:
    """Whether somebody follows the model's operations or blocks, of which a program has none: a compiler, a trace (it
    would keep the result as a constant), a dispatch mode, a hook.
    """
    if torch.compiler.is_compiling():  # first: a compiler does not follow what comes then
        return True
    tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    if tracing or _get_current_dispatch_mode() is not None:
        return True
    modules: Any = (vit, *vit.blocks)
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def _take(vit: ViT) -> CompiledViT | None:
    """A program that is this caller's alone until it gives it back."""
    threads = torch.get_num_threads()
    with _lock:
        idle = _idle.setdefault(vit, _Idle())
        if idle.refused is vit.config:
            return None
        while idle.programs:
            program = idle.programs.pop()
            if program.fits(vit, threads):
                return program
    try:
        return CompiledViT(vit, threads)
    except ValueError:
        idle.refused = vit.config
        return None


def _give_back(vit: ViT, program: CompiledViT) -> None:
    with _lock:
        idle = _idle.setdefault(vit, _Idle())
        idle.refused = None
        idle.programs.append(program)
