"""What lies in a folder, a .tar or a data set, found by timm's readers so that labels agree."""

import os
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

from qvit.errors import InputError, RequirementError, UsageError

# timm's readers of streams: they have no positions, so that results could not be matched to images.
_STREAMS = ("hfids/", "tfds/", "wds/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The images of one data set, in timm's order.

    Attributes:
        read: The encoded bytes of an image by position, from any thread; raises OSError.
        names: Class names in timm's natural order.
        labels: For each image, the position of its class in `names`.
        paths: For each image, its path below the root.
        sizes: For each image, its bytes; 0 where that is not known without reading it.
        revision: Identifies the contents where sizes do not.
    """

    read: Callable[[int], bytes]
    names: list[str]
    labels: list[int]
    paths: list[str]
    sizes: list[int]
    revision: str = ""


def list_images(data: str, split: str, wanted: int | None = None) -> Listing:
    """List a folder, a .tar, "hfds/NAME", or the package's own rendered images.

    Args:
        data: What the user gave.
        split: Of a Hugging Face data set.
        wanted: How many images, of a source that has no end of them.

    Raises:
        UsageError: This kind of data is not supported.
        InputError: It is absent, unreadable or without images.
        RequirementError: A package needed for it is missing.
    """
    if data.startswith(_STREAMS):
        raise UsageError(
            f"{data} would be read as a stream. Give a folder, a .tar, or hfds/NAME for a Hugging"
            " Face data set."
        )
    if is_rendered(data):
        return _list_rendered(data, wanted)
    if data.startswith("hfds/"):
        return _list_table(data, split)
    path = Path(data).expanduser()
    if not path.exists():
        raise InputError(f"The data {data} does not exist. Check the path given with --data.")
    if path.is_dir():
        return _list_folder(path)
    if path.suffix.lower() == ".tar":
        return _list_tar(path)
    raise InputError(
        f"{data} is a file, but not a .tar. Give a folder with one folder of images per class, or a"
        " .tar of such."
    )


def is_rendered(data: str) -> bool:
    """Whether `data` names the package's own images: "demo" or "demo:COUNT"; a folder of that name is ./demo."""
    return data.partition(":")[0] == "demo"


def _list_rendered(data: str, wanted: int | None) -> Listing:
    from qvit.demo import dataset

    _, given, count = data.partition(":")
    if not given:
        count = str(wanted or dataset.DEFAULT_COUNT)
    if not count.isdecimal() or int(count) < 1:
        raise UsageError(
            f"{data}: expected demo, or demo: and a number of images, such as demo:500."
        )
    order = dataset.order_by_class(int(count))
    labels = [dataset.label_of(index) for index in order]
    return Listing(
        read=lambda position: dataset.encode(order[position]),
        names=list(dataset.CLASSES),
        labels=labels,
        paths=[f"{dataset.CLASSES[i]}/{index:06d}" for i, index in zip(labels, order, strict=True)],
        sizes=[0] * len(order),
        revision=dataset.REVISION,
    )


def _list_folder(root: Path) -> Listing:
    from timm.data.readers.reader_image_folder import ReaderImageFolder

    try:
        reader = ReaderImageFolder(
            str(root)
        )  # no class map: timm would drop the folders that it lacks
    except RuntimeError as error:
        raise _empty(root) from error
    files = [Path(path) for path, _ in reader.samples]
    return Listing(
        read=lambda position: files[position].read_bytes(),
        names=_ordered(reader.class_to_idx or {}),
        labels=[int(label) for _, label in reader.samples],
        paths=[file.relative_to(root).as_posix() for file in files],
        sizes=[_size(file) for file in files],
    )


def _list_tar(path: Path) -> Listing:
    from timm.data.readers.reader_image_in_tar import ReaderImageInTar

    try:
        # cache_tarinfo would leave a pickle beside tars above 10 GB, and read one that lies there.
        reader = ReaderImageInTar(str(path), cache_tarinfo=False)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(
            f"{path} is not a readable tar ({error}). It is truncated or corrupt: fetch it again."
        ) from error
    except ValueError as error:  # zip(*[]) in timm
        raise _empty(path) from error
    members = [sample[0] for sample in reader.samples]
    # Where the tar begins that holds the image: further in, if it is a tar in the tar.
    outer = [sample[2].offset_data if sample[2] else 0 for sample in reader.samples]

    def read(position: int) -> bytes:
        # timm keeps one tar open, whose position all threads would share, and never closes it.
        with path.open("rb") as file:
            file.seek(outer[position] + members[position].offset_data)
            return file.read(members[position].size)

    return Listing(
        read=read,
        names=_ordered(reader.class_name_to_idx or {}),
        labels=[int(label) for label in reader.targets],
        paths=[member.name for member in members],
        sizes=[int(member.size) for member in members],
    )


def _list_table(data: str, split: str) -> Listing:
    if find_spec("datasets") is None:  # timm would print its advice on stdout
        raise RequirementError(
            f"{data} needs the package 'datasets': pip install datasets. Or give a folder or a"
            " .tar."
        )
    from timm.data.readers.reader_hfds import ReaderHfds

    try:
        reader = ReaderHfds(data.removeprefix("hfds/"), split=split)
        column: Iterable[Any] = reader.dataset[reader.label_key]
        labels = [int(label) for label in column]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{data} (split {split}) cannot be opened: {error}. It needs the columns 'image' and"
            " 'label'."
        ) from error
    if not labels:
        raise _empty(Path(data))
    guard = Lock()

    def read(position: int) -> bytes:
        with guard, reader[position][0] as file:
            return file.read()

    return Listing(
        read=read,
        names=_ordered(reader.class_to_idx) or [str(i) for i in range(max(labels) + 1)],
        labels=labels,
        paths=[str(position) for position in range(len(labels))],
        sizes=[0] * len(labels),
        revision=str(getattr(reader.dataset, "_fingerprint", "")),
    )


def _empty(path: Path) -> InputError:
    return InputError(f"{path} has no images. Expected one folder of images per class below it.")


def _ordered(class_to_index: Mapping[str, int]) -> list[str]:
    return sorted(class_to_index, key=class_to_index.__getitem__)


def _size(file: Path) -> int:
    try:
        return os.path.getsize(file)
    except OSError:  # a dangling link; reading it will say so
        return 0
