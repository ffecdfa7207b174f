"""Weight files: read one without running its code, put it into a model exactly or not at all."""

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvit.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")
_LISTED = 4  # keys that a message names before it says how many more there are


def check_file(path: Path) -> None:
    """Refuse a path that cannot be a weight file.

    Raises:
        InputError: It is absent, a folder, or of a kind that is not read.
    """
    if path.is_dir():
        raise InputError(
            f"--weights {path} is a folder. Give the weight file in it, or the folder itself as the"
            f" model (local-dir:{path}) where it holds a timm config.json."
        )
    if not path.exists():
        raise InputError(f"The weight file {path} does not exist. Check the path.")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{path} is not a weight file that can be read: the suffix is"
            f" {path.suffix or 'missing'}, expected one of {', '.join(SUFFIXES)}."
        )


def read_state(path: Path) -> dict[str, "torch.Tensor"]:
    """The tensors of a weight file by key, on the CPU, as stored.

    Wrappers of training scripts are taken off: EMA weights are preferred, then `state_dict` and
    `model`; `module.` and `_orig_mod.` prefixes go. Pickles are read with weights_only, so that no
    code in them runs.

    Raises:
        InputError: The file is absent, truncated, corrupt, needs code to be read, or holds no state
            dict.
    """
    check_file(path)
    from safetensors import SafetensorError
    from timm.models import load_state_dict

    try:
        state: Mapping[str, Any] = load_state_dict(str(path), use_ema=True, weights_only=True)
    except SafetensorError as error:
        raise InputError(
            f"{path} is not a readable safetensors file ({error}). It is truncated or corrupt:"
            " fetch it again."
        ) from error
    except (AttributeError, TypeError) as error:  # timm's unwrapping, of a tensor or a list
        raise InputError(
            f"{path} is corrupt, or holds no state dict (a mapping of names to tensors)."
        ) from error
    except Exception as error:
        raise InputError(_unreadable(path, error)) from error
    return _only_tensors(state, path)


def classifier_rows(path: Path, classifier: str | Iterable[str] | None) -> int | None:
    """The number of classes of the head in a weight file, from its header where the format has one.

    Args:
        path: The weight file.
        classifier: timm's name of the head ("head"), or several of which the first counts.

    Returns:
        The rows of the head's weight; None where the file has no head under that name.

    Raises:
        InputError: As `read_state`.
    """
    names = [classifier] if isinstance(classifier, str) else list(classifier or [])
    if not names:
        return None
    shapes = _shapes(path)
    for prefix in ("", "module.", "_orig_mod."):
        shape = shapes.get(f"{prefix}{names[0]}.weight")
        if shape:
            return shape[0]
    return None


def load_into(
    model: "nn.Module", state: Mapping[str, "torch.Tensor"], *, architecture: str, origin: str
) -> None:
    """Fill `model` with `state`, after timm's own checkpoint filter for the architecture.

    Every parameter and buffer must be there, with its shape and finite; values are converted to the
    model's dtype.

    Args:
        model: The timm model, which keeps its values when an error is raised.
        state: As `read_state` returns it.
        architecture: timm's name without tag, which decides the filter.
        origin: Where the state comes from, for the messages.

    Raises:
        InputError: A key is missing, unexpected, of another shape or kind, or not finite.
    """
    filtered = _filtered(model, state, architecture, origin)
    _refuse_resampled(model, state, filtered, architecture, origin)
    expected = model.state_dict()
    faults = _faults(expected, filtered)
    if faults:
        raise InputError(
            f"{origin} does not fit {architecture}: {'; '.join(faults)}. Check that the name and"
            " the weights belong together. A model built with further arguments (img_size,"
            " global_pool, ...) can be given as a timm folder instead (config.json with model_args"
            " beside model.safetensors)."
        )
    broken = [k for k, v in filtered.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise InputError(
            f"{origin} has NaN or infinite values in {_listing(broken)}. Such a model computes"
            " nothing useful: take another checkpoint of the training run."
        )
    model.load_state_dict({key: value.to(expected[key].dtype) for key, value in filtered.items()})


def _unreadable(path: Path, error: Exception) -> str:
    reason = str(error) or type(error).__name__
    if "weights_only" not in reason:
        return (
            f"{path} is not a readable PyTorch file ({reason}). It is truncated or corrupt: fetch"
            " it again."
        )
    names = reason.partition("Unsupported globals: ")[2].partition(" No automatic")[0]
    found = f" ({names.rstrip('.')[:200]})" if names else ""
    return (
        f"{path} is corrupt, or holds more than tensors{found}. Loading that would run code from"
        " the file, which qvit refuses. If you trust the file, save its state_dict() as"
        " safetensors and give that."
    )


def _only_tensors(state: Mapping[str, Any], path: Path) -> dict[str, "torch.Tensor"]:
    import torch

    other = [key for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if other or not state:
        what = f"entries that are not tensors: {_listing(other)}" if other else "no tensors"
        raise InputError(
            f"{path} has {what}. Expected the weights of one model by name, alone or under 'model',"
            " 'state_dict', 'model_ema' or 'state_dict_ema'; save the wanted part as safetensors"
            " and give that."
        )
    return dict(state)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    if path.suffix.lower() != ".safetensors":
        return {key: tuple(value.shape) for key, value in read_state(path).items()}
    check_file(path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is not a readable safetensors file ({error}). It is truncated or corrupt:"
            " fetch it again."
        ) from error


def _checkpoint_filter(architecture: str) -> Callable[..., Mapping[str, "torch.Tensor"]] | None:
    """timm's translation of original checkpoints for an architecture; None where it has none."""
    from timm.models import model_entrypoint

    module = sys.modules[model_entrypoint(architecture).__module__]
    translate = getattr(module, "checkpoint_filter_fn", None)
    if translate is None or "adapt_layer_scale" not in inspect.signature(translate).parameters:
        return translate
    # DeiT-III's files name the layer scale gamma_1; the flag does nothing to files without such
    # keys.
    return lambda state, model: translate(state, model, adapt_layer_scale=True)


def _filtered(
    model: "nn.Module", state: Mapping[str, "torch.Tensor"], architecture: str, origin: str
) -> dict[str, "torch.Tensor"]:
    translate = _checkpoint_filter(architecture)
    if translate is None:
        return dict(state)
    try:
        return dict(translate(dict(state), model))
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{origin} does not look like weights of {architecture}: timm's filter for it stopped"
            f" at {type(error).__name__}: {error}. Its keys begin with {_listing(list(state))}."
        ) from error


def _refuse_resampled(
    model: "nn.Module",
    state: Mapping[str, "torch.Tensor"],
    filtered: Mapping[str, "torch.Tensor"],
    architecture: str,
    origin: str,
) -> None:
    """Refuse what timm's filter would interpolate without a word, at a cost in accuracy."""
    after = filtered.get("pos_embed")
    before = next((v for k, v in state.items() if k.rpartition(".")[2] == "pos_embed"), None)
    prefix_tokens = getattr(model, "num_prefix_tokens", 0)
    if before is None or after is None or abs(before.shape[-2] - after.shape[-2]) <= prefix_tokens:
        return
    raise InputError(
        f"{origin} was trained at another image size: its pos_embed has {before.shape[-2]} tokens,"
        f" that of {architecture} {after.shape[-2]}. Name the architecture of the size it was"
        " trained at, or give a timm folder whose config.json has img_size in model_args."
    )


def _faults(
    expected: Mapping[str, "torch.Tensor"], found: Mapping[str, "torch.Tensor"]
) -> list[str]:
    missing = [f"{k} {list(v.shape)}" for k, v in expected.items() if k not in found]
    unexpected = [f"{k} {list(v.shape)}" for k, v in found.items() if k not in expected]
    shared = [(k, expected[k], found[k]) for k in expected if k in found]
    shapes = [
        f"{k} is {list(b.shape)} in the file and {list(a.shape)} in the model"
        for k, a, b in shared
        if a.shape != b.shape
    ]
    kinds = [
        f"{k} is {b.dtype}" for k, a, b in shared if a.is_floating_point() != b.is_floating_point()
    ]
    faults = {
        "missing": missing,
        "not in the model": unexpected,
        "other shapes": shapes,
        "other dtypes": kinds,
    }
    return [f"{what}: {_listing(keys)}" for what, keys in faults.items() if keys]


def _listing(items: list[str]) -> str:
    more = len(items) - _LISTED
    return ", ".join(items[:_LISTED]) + (f" and {more} more" if more > 0 else "")
