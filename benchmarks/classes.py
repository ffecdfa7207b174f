"""Training images beside the tree, one a class of ImageNet: odd classes to choose by, even ones to learn from."""

from pathlib import Path

from benchmarks.cells import ROOT

SHARED = ROOT.parent / "shared"
SYNSETS = SHARED / "imagenet" / "synsets.txt"
_TRAIN = SHARED / "imagenet" / "train"

EVEN, ODD = 0, 1  # real calibration images, development images


def link_classes(folder: Path, first: int) -> None:
    """Put training images of every other class into a folder: EVEN or ODD ones."""
    for name in SYNSETS.read_text(encoding="utf-8").split()[first::2]:
        (folder / name).symlink_to(_TRAIN / name)
