"""Labelled pictures without end: a seed and an index give one, the same on every machine."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qvit.demo.canvas import Canvas
from qvit.demo.objects import CLASSES, draw_object
from qvit.demo.surroundings import draw_background, draw_clutter, draw_occluders

# Raised whenever the same seed and index give another picture: what was cached of the old ones is void.
VERSION = 1

_LEAST_VISIBLE = 12  # pixels; less of an object is clutter
_COMPANIONS = (0, 0, 1, 1, 2)  # smaller objects beside the one that gives the picture its class


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One picture and all that is known of it.

    Attributes:
        image: uint8 [64, 64, 3], RGB.
        label: Index into CLASSES of the largest object, that which lies on top of the others.
        mask: uint8 [64, 64]; 0 for the background and all that is no object, i + 1 for object i where it is seen.
        classes: int64 [objects]; the largest object is the first.
        boxes: int64 [objects, 4]; left, top, right, bottom of what is seen, in pixels, right and bottom exclusive.
    """

    image: NDArray[np.uint8]
    label: int
    mask: NDArray[np.uint8]
    classes: NDArray[np.int64]
    boxes: NDArray[np.int64]


def label_of(index: int) -> int:
    """The class of picture `index`, of any series."""
    return index % len(CLASSES)


def render(seed: int, index: int) -> Scene:
    """Draw picture `index` of the endless series `seed`.

    Raises:
        ValueError: The seed or the index is negative.
    """
    # The bit generator by name: default_rng may become another one.
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, index))))
    label = label_of(index)
    canvas = Canvas(draw_background(rng))
    draw_clutter(canvas, rng)
    count = _COMPANIONS[int(rng.integers(len(_COMPANIONS)))]
    labels = [label]
    for number in range(count):
        labels.append(int(rng.integers(len(CLASSES))))
        draw_object(canvas, rng, labels[-1], number + 2, main=False)
    draw_object(canvas, rng, label, 1, main=True)
    draw_occluders(canvas, rng, spared=1)
    return _describe(canvas.pixels(rng), canvas.owner, labels)


def _describe(image: NDArray[np.uint8], owner: NDArray[np.uint8], labels: list[int]) -> Scene:
    """Number the objects that are seen from 1, and measure them."""
    mask = np.zeros_like(owner)
    classes: list[int] = []
    boxes: list[tuple[int, int, int, int]] = []
    for number, label in enumerate(labels, start=1):
        seen = owner == number
        rows, columns = np.nonzero(seen.any(axis=1))[0], np.nonzero(seen.any(axis=0))[0]
        if np.count_nonzero(seen) < _LEAST_VISIBLE:
            continue
        classes.append(label)
        boxes.append((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
        mask[seen] = len(classes)
    return Scene(
        image=image,
        label=labels[0],
        mask=mask,
        classes=np.array(classes, np.int64),
        boxes=np.array(boxes, np.int64).reshape(-1, 4),
    )
