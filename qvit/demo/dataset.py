"""The rendered pictures as a data set: which seed they are drawn from, and how they are named and stored."""

from qvit.demo.canvas import SIZE
from qvit.demo.objects import CLASSES
from qvit.demo.scenes import VERSION, label_of, render

__all__ = [
    "CLASSES",
    "DEFAULT_COUNT",
    "REVISION",
    "TEST_SEED",
    "TRAINING_SEED",
    "encode",
    "label_of",
    "order_by_class",
]

TRAINING_SEED = 1  # the packaged models were trained on this series
TEST_SEED = 2  # and are measured on this one
DEFAULT_COUNT = 1000

REVISION = f"rendered, version {VERSION}, seed {TEST_SEED}"


def order_by_class(count: int) -> list[int]:
    """The first `count` pictures of a series, those of each class together."""
    return sorted(range(count), key=lambda index: (label_of(index), index))


def encode(index: int) -> bytes:
    """Picture `index` of the test series as an image file, a binary PPM."""
    header = f"P6 {SIZE} {SIZE} 255\n".encode()
    return header + render(TEST_SEED, index).image.tobytes()
