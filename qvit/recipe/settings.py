"""What `--set key=value` does to the plain values of a recipe."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import yaml

from qvit.errors import UsageError
from qvit.recipe.distillation import Distillation
from qvit.recipe.fields import leaves, nearest
from qvit.recipe.game import Game
from qvit.recipe.static import Static
from qvit.recipe.synthesis import Synthesis

# Sections that a recipe may lack, what makes one from the word after `--set section=`, and what to say without one.
_STAGES: dict[str, Callable[[str], Any]] = {
    "synthesis": Synthesis.preset,
    "distillation": Distillation.preset,
    "game": lambda rounds: Game(rounds=_whole(rounds)),
    "static": lambda ranges: Static(activations=ranges),
}
_OFF = {
    "synthesis": "no images are made; turn that on with --set synthesis=METHOD",
    "distillation": "nothing is trained; turn that on with --set distillation=METHOD",
    "game": "images and student do not play; turn that on with --set game=ROUNDS",
    "static": "the quantizers are qvit's own; choose others with --set static=lsq",
}


def apply_settings(values: dict[str, Any], settings: Iterable[str]) -> None:
    """Change a recipe's nested plain values in place by `key=value` settings, whose values are read as YAML.

    Raises UsageError for a setting that is none, or a field that is not there, with the nearest one.
    """
    for setting in settings:
        key, separator, text = (part.strip() for part in setting.partition("="))
        if not separator:
            raise UsageError(f"--set {setting!r}: expected key=value, such as weights.group=16")
        if key in _STAGES:
            values[key] = _stage_of(key, text)
            continue
        if key.startswith("layers."):
            _set_layer(values["layers"], key.removeprefix("layers."), text)
            continue
        *rooms, leaf = key.split(".")
        place: Any = values
        for room in rooms:
            place = place.get(room) if isinstance(place, dict) else None
        if not isinstance(place, dict) or leaf not in place or isinstance(place[leaf], dict):
            if rooms and rooms[0] in _STAGES and values[rooms[0]] is None:
                raise UsageError(f"--set {key}: {_OFF[rooms[0]]}")
            raise UsageError(f"--set {key}: no such recipe field{nearest(key, leaves(values))}")
        try:
            place[leaf] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {setting}: {text!r} is no value in YAML") from error


def _set_layer(layers: dict[str, str], pattern: str, text: str) -> None:
    """A pattern's bits, behind all others, where it has its way; none to leave the pattern out."""
    layers.pop(pattern, None)
    if text != "none":
        layers[pattern] = text


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"--set game={text}: expected a number of rounds, or none") from error


def _stage_of(name: str, text: str) -> dict[str, Any] | None:
    """What `--set synthesis=TEXT` and the like mean: a method's preset, or none or null to leave the stage out."""
    if text in ("none", "null", "~", ""):
        return None
    return dataclasses.asdict(_STAGES[name](text))
