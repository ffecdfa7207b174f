"""What a quantized model learned from: method, number and settings of its images, and some of them."""

import dataclasses
from collections.abc import Iterator

from qvit.kept import images_beside
from qvit.recipe import Synthesis
from qvit.report.page import Block, Gallery, Paragraph, Section, Table, Tile
from qvit.report.pictures import encode
from qvit.report.records import Folder
from qvit.report.samples import Samples
from qvit.report.wording import plain

GRID = "images.png"
_WHAT = {
    "leaves": "dead leaves: overlapping shapes of all sizes, drawn from the seed, which know nothing of the model",
    "noise": "Gaussian noise, drawn from the seed",
}


def show_samples(folder: Folder) -> Section | None:
    """The synthesis behind the model; None where it learned from no images."""
    found = folder.samples
    if found is None:
        return None
    settings = _changed(found.settings)
    blocks: list[Block] = [Table(("", ""), list(_facts(found)))]
    if found.pixels is not None:
        tiles = [
            Tile(encode(pixels), f"image {number} that the model learned from")
            for number, pixels in enumerate(found.pixels, 1)
        ]
        blocks.append(Gallery(tiles, GRID, _caption(found, len(tiles))))
    else:
        blocks.append(Paragraph(_say_why_not(found, folder)))
    blocks.append(
        Table(
            ("setting", "value"),
            settings,
            code=True,
            folded="Settings that differ from the defaults",
        )
    )
    data = {
        "method": found.settings.method,
        "images": found.settings.images,
        "seed": found.seed,
        "shown": 0 if found.pixels is None else len(found.pixels),
        "settings": dict(settings),
    }
    return Section("synthesis", "Synthesis", _lead(found), blocks, data)


def _lead(found: Samples) -> str:
    settings = found.settings
    used = " and ".join(
        words
        for words, yes in (("rounded for", found.rounded), ("trained on", found.trained))
        if yes
    )
    if not settings.data_free:
        beside = f" and {settings.leaves} dead leaves" if settings.leaves else ""
        return f"Weights were {used} {settings.images_read} images that were given{beside}."
    what = _WHAT.get(
        settings.method, f"made from the float model's weights by the method {settings.method}"
    )
    return f"Weights were {used} {settings.images:,} synthetic images, {what}. No image was read."


def _facts(found: Samples) -> Iterator[tuple[str, str]]:
    settings = found.settings
    yield "method", settings.method
    yield "images", f"{settings.images:,}"
    if settings.iterations:
        yield "iterations", f"{settings.iterations:,} a batch of {settings.batch}"
    yield "seed", str(found.seed)
    if found.fingerprint:
        yield "fingerprint", found.fingerprint


def _caption(found: Samples, shown: int) -> str:
    if found.folder is None:
        return (
            f"The first {shown} of them, drawn again from the seed. They are no part of the model."
        )
    name = found.folder.name
    return (
        f"{shown} of them, spread evenly over those in {name}. They are no part of the model; qvit report {name} says "
        "what the float model sees in them."
    )


def _say_why_not(found: Samples, folder: Folder) -> str:
    if not found.settings.data_free:
        return "Images of your own are not shown: they would go wherever the page goes."
    if found.settings.method == "noise":
        return "Noise looks like noise, and is not shown."
    if found.fingerprint is None:
        return "They were made while the model was trained, and none of them was kept."
    name = images_beside(folder.path).name
    return (
        f"They are not shown, for {name} is no longer beside the model. The command that made the model makes them "
        "again, byte for byte."
    )


def _changed(settings: Synthesis) -> list[tuple[str, str]]:
    """Fields that the method has otherwise than the dataclass; a user's paths are none of the page's."""
    return [
        (field.name, plain(value))
        for field in dataclasses.fields(settings)
        if (value := getattr(settings, field.name)) != field.default
        and field.name not in ("data", "class_map")
    ]
