"""Where every head looks, in synthetic images beside real ones."""

import numpy as np

from qvit.report.evidence import Evidence, Observation
from qvit.report.page import NOISE, Mosaic, Notice, Paragraph, Section, Strip, Tile
from qvit.report.pictures import colour_map, encode, shrink

_SHOWN = 3  # images of each kind
_THUMBNAIL = 128


def show_attention(evidence: Evidence) -> Section:
    """Attention maps per head, at the middle and at the last block."""
    depth = evidence.config.depth
    blocks = sorted({depth // 2, depth - 1})
    shown: list[Mosaic | Notice | Paragraph] = [_mosaic(evidence, block) for block in blocks]
    shown.append(
        Paragraph(
            "Every map runs from its own least value (dark) to its own greatest (bright); brightness goes with the"
            " square root, so that weak attention shows too."
        )
    )
    reader = "the class token" if evidence.config.class_token else "the patches, on average,"
    lead = (
        f"How much {reader} of each head looks at every patch. How alike the heads attend is the"
        " inter-head distance above."
    )
    if evidence.real is None:
        shown.append(Notice("Give real images with --images PATH to see their maps beside these."))
    return Section("attention", "Attention maps", lead, shown)


def _mosaic(evidence: Evidence, block: int) -> Mosaic:
    strips = [
        _strip(evidence, each, index, block)
        for each in (evidence.synthetic, evidence.real, evidence.noise)
        if each is not None
        # one row of noise is enough to see what it is
        for index in range(min(1 if each.role == NOISE else _SHOWN, len(each.attention)))
    ]
    return Mosaic(
        title=f"Block {block + 1} of {evidence.config.depth}",
        columns=[f"head {head + 1}" for head in range(evidence.config.num_heads)],
        strips=strips,
        file=f"attention-block{block + 1}.png",
    )


def _strip(evidence: Evidence, seen: Observation, index: int, block: int) -> Strip:
    shape = tuple(
        i // p for i, p in zip(evidence.config.image_size, evidence.config.patch_size, strict=True)
    )
    label, number = evidence.label(seen.role), seen.mapped[index] + 1
    start = Tile(encode(shrink(seen.starts[index], _THUMBNAIL)), f"{label} image {number}")
    maps = seen.attention[index, block].double().numpy()
    cells = [
        Tile(
            encode(colour_map(np.reshape(values, shape))),
            f"{label} image {number}, block {block + 1}, head {head + 1}",
        )
        for head, values in enumerate(maps)
    ]
    return Strip(seen.role, label, start, cells)
