"""Class indices from folder names and class maps, refusing what would shift a label silently."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qvit.data.listings import is_rendered
from qvit.errors import InputError

_LISTED = 3


def read_class_map(path: Path, root: Path | None = None) -> dict[str, int]:
    """A class map as timm has them: names by line in a .txt, or a dict of names in a .pkl.

    Args:
        path: The file, also looked for below `root`.
        root: The data folder.

    Raises:
        InputError: It is absent, of another kind, unreadable, or names a class twice.
    """
    from pickle import UnpicklingError

    from timm.data.readers.class_map import load_class_map

    found = path if path.exists() or root is None else root / path
    if not found.is_file():
        raise InputError(f"The class map {path} does not exist. Check the path.")
    if found.suffix.lower() not in (".txt", ".pkl"):
        raise InputError(
            f"The class map {found} has the suffix '{found.suffix}'; expected .txt with one class"
            " name a line in the order of the model's classes, or .pkl with a dict of names to"
            " indices."
        )
    try:
        mapping = load_class_map(str(found))
    except (UnicodeDecodeError, UnpicklingError, EOFError, ValueError, OSError) as error:
        raise InputError(f"The class map {found} cannot be read: {error}.") from error
    if found.suffix.lower() == ".txt":
        _refuse_repeated(found)
        mapping.pop("", None)  # blank lines at the end
    return _checked(mapping, found)


def label_indices(
    labels: Sequence[int],
    names: Sequence[str],
    *,
    data: str,
    class_map: Mapping[str, int] | None,
    map_name: str,
    num_classes: int | None,
) -> list[int]:
    """The class index of each image in the order of the model's outputs.

    Args:
        labels: For each image, the position of its class in `names`.
        names: Class names in timm's natural order; without a class map that order is the classes'.
        data: What the user gave as data, for the messages.
        class_map: Class names to indices.
        map_name: The class map's file, for the messages.
        num_classes: Of the model; None leaves the number unchecked.

    Raises:
        InputError: The class names do not match the map, or the number of classes not the model.
    """
    if class_map is None:
        if num_classes is not None and len(names) != num_classes:
            raise InputError(_count_mismatch(data, names, num_classes))
        return list(labels)
    absent = [name for name in names if name not in class_map]
    if absent:
        raise InputError(
            f"{len(absent)} of {len(names)} classes in {data} are not in the class map {map_name}:"
            f" {_listing(absent)}. The map begins with {_listing(list(class_map))}. Names must be"
            " equal; each line of a .txt map is one folder name."
        )
    highest = max(class_map.values())
    if num_classes is not None and highest >= num_classes:
        raise InputError(
            f"The class map {map_name} goes up to index {highest}, but the model has {num_classes}"
            f" classes (0 to {num_classes - 1}). Use the map of the model's own classes."
        )
    return [class_map[names[label]] for label in labels]


def _refuse_repeated(path: Path) -> None:
    seen: set[str] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        name = line.strip()
        if name and name in seen:
            raise InputError(
                f"The class map {path} names '{name}' twice (again in line {number}). A class has"
                " one index: remove one of the lines."
            )
        seen.add(name)


def _checked(mapping: Mapping[Any, Any], path: Path) -> dict[str, int]:
    checked: dict[str, int] = {}
    for name, index in mapping.items():
        if not isinstance(name, str) or type(index) is not int or index < 0:
            raise InputError(
                f"The class map {path} must map class names to indices from 0; it maps {name!r} to"
                f" {index!r}."
            )
        checked[name] = index
    if not checked:
        raise InputError(f"The class map {path} is empty.")
    return checked


def _count_mismatch(data: str, names: Sequence[str], num_classes: int) -> str:
    if is_rendered(data):
        return (
            f"--data {data} shows the {len(names)} classes of demo_vit and demo_resnet; this model"
            f" has {num_classes}. Give images of its own classes."
        )
    if list(names) == [""]:
        return (
            f"The images of {data} do not lie in one folder per class, so they have no labels. Put"
            " those of each class into a folder with the class's name."
        )
    return (
        f"{data} has {len(names)} classes ({_listing(names)}), the model has {num_classes}. Folder"
        " names in sorted order would give wrong labels: give the order of the model's classes"
        " with --class-map FILE (.txt, one folder name a line)."
    )


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_LISTED])
    return f"{shown}, ..." if len(names) > _LISTED else shown
