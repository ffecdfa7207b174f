"""From plain values to the frozen dataclasses of a recipe, refusing what does not fit by name."""

import dataclasses
import difflib
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from qvit.errors import UsageError

# Inclusive bounds of numbers by the name of their field; None: no upper end.
Ranges = tuple[tuple[str, float, float | None], ...]


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises UsageError where the value is none of the choices."""
    if value not in choices:
        raise UsageError(f"{name} = {value!r}: expected one of {', '.join(choices)}")


def check_range(name: str, value: float, low: float, high: float | None = None) -> None:
    """Raises UsageError where a number is not within low..high, both included; None: no upper end."""
    if low <= value and (high is None or value <= high):  # NaN fails, too
        return
    wanted = f"{low:g} or more" if high is None else f"{low:g} to {high:g}"
    raise UsageError(f"{name} = {value!r}: expected {wanted}")


def check_ranges(prefix: str, settings: Any, ranges: Ranges) -> None:
    """`check_range` of every field that has a range; prefix: that of the names in messages, "synthesis."."""
    for name, low, high in ranges:
        check_range(prefix + name, getattr(settings, name), low, high)


def fill_preset(
    cls: Any,
    presets: Mapping[str, Mapping[str, Any]],
    method: str,
    changes: Mapping[str, Any],
    kind: str,
) -> Any:
    """The dataclass that a method's preset describes, some of its fields replaced.

    kind: What a method is called where it is unknown.

    Raises:
        UsageError: The method or a field is unknown, or a value impossible.
    """
    if method not in presets:
        raise UsageError(
            f"unknown {kind} {method!r}{nearest(method, presets)}; known: {', '.join(presets)}"
        )
    unknown = next((name for name in changes if name not in cls.__dataclass_fields__), None)
    if unknown is not None:
        known = nearest(unknown, cls.__dataclass_fields__)
        raise UsageError(f"{cls.__name__.lower()} has no field {unknown}{known}")
    return cls(**{"method": method, **presets[method], **changes})


def build(cls: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """A dataclass from nested plain values.

    Raises:
        UsageError: A key is unknown (with the nearest spelling), or a value has the wrong type.
    """
    hints = get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise UsageError(f"the recipe has no field {prefix}{key}{nearest(str(key), hints)}")
    arguments = {}
    for key, value in values.items():
        kind = _dataclass_in(hints[key])
        if kind is None or (value is None and kind is not hints[key]):
            arguments[key] = _typed(hints[key], value, prefix + key)
        elif not isinstance(value, Mapping):
            raise UsageError(f"recipe field {prefix}{key}: expected a mapping, got {value!r}")
        else:
            arguments[key] = build(kind, value, f"{prefix}{key}.")
    return cls(**arguments)


def _dataclass_in(hint: Any) -> Any:
    """The dataclass that a field holds, also where it may be None; None for a field of plain values."""
    return next((kind for kind in _kinds(hint) if dataclasses.is_dataclass(kind)), None)


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


# YAML 1.1 takes 1e-4 and 1.0e4 for text: the first has no point, the second no sign in its exponent
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def _typed(hint: Any, value: Any, name: str) -> Any:
    kinds = _kinds(hint)
    if float in kinds and type(value) is int:
        return float(value)
    if float in kinds and type(value) is str and _EXPONENT.fullmatch(value):
        return float(value)
    # bool is a subclass of int: `bits: true` must not mean one bit
    if type(value) not in [get_origin(kind) or kind for kind in kinds]:
        expected = " or ".join(getattr(k, "__name__", str(k)) for k in kinds)
        raise UsageError(f"recipe field {name}: expected {expected}, got {value!r}")
    return value


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """The dotted names of all plain values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a sentence that suggests the nearest known spelling, or nothing."""
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""
