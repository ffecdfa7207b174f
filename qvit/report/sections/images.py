"""The images themselves."""

from typing import TYPE_CHECKING

from qvit.report.evidence import Evidence
from qvit.report.page import SYNTHETIC, Gallery, Section, Tile
from qvit.report.pictures import encode

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GRID = "grid.png"


def show_images(evidence: Evidence) -> Section:
    """The grid of images, each with the class that the teacher sees and how sure it is."""
    seen, total = evidence.synthetic, evidence.run.manifest["counts"]["images"]
    tiles = [
        _tile(evidence, index, pixels)
        for index, pixels in zip(seen.shown, seen.pixels, strict=True)
    ]
    lead = f"{len(tiles)} of {total:,} images" if total > len(tiles) else f"All {total} images"
    lead += ", spread evenly over the run." if total > len(tiles) else "."
    caption = ""
    if seen.predicted:
        caption = "Under each image: the class that the teacher sees, and its probability. "
    if evidence.hits is not None:
        lead += f" In {evidence.hits} of {seen.count} the teacher sees the class {evidence.wish}."
        caption += (
            f"Where it sees another class than that {evidence.wish}, this one is named, too. "
        )
    caption += f"The same grid as one picture: {GRID}."
    return Section(
        "images",
        "The images",
        lead,
        [Gallery(tiles, GRID, caption)],
        {"images": total, "shown": len(tiles)},
    )


def _tile(evidence: Evidence, index: int, pixels: "NDArray[np.uint8]") -> Tile:
    seen = evidence.synthetic
    if not seen.predicted:
        return Tile(encode(pixels), f"{evidence.label(SYNTHETIC)} image {index + 1}")
    name = evidence.name_class(seen.predicted[index])
    detail = f"{100 * seen.confidence[index]:.0f} %"
    if seen.wanted is not None and seen.wanted[index] != seen.predicted[index]:
        detail += f", {evidence.wish}: {evidence.name_class(seen.wanted[index])}"
    return Tile(
        encode(pixels),
        f"{evidence.label(SYNTHETIC)} image: {name}, {detail}",
        name,
        detail,
    )
