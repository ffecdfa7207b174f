"""What the sections of a synthesis report are made from: the run's own records, and what the teacher says of images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvit.report.page import SYNTHETIC

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from qvit.models.config import ViTConfig
    from qvit.report.ranges import Ranges

Trace = Mapping[int, Sequence[tuple[int, float]]]
"""Of one quantity: for every batch, its (iteration, value) pairs in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A synthesis folder as its manifest and log tell it.

    Attributes:
        path: The folder.
        manifest: manifest.json.
        seconds: Of computing, all batches together.
        terms: Name of a loss term, or "loss" -> its trace, before it is weighted.
        measures: Name of a measure -> its trace, the first and the last iteration of each batch among it.
        recoveries: What went wrong and was mended, a sentence each.
    """

    path: Path
    manifest: Mapping[str, Any]
    seconds: float
    terms: Mapping[str, Trace] = field(default_factory=dict)
    measures: Mapping[str, Trace] = field(default_factory=dict)
    recoveries: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the teacher does with one set of images.

    Attributes:
        role: Whose they are, a role of page.py.
        count: Images measured.
        shown: Positions of n images, spread evenly over all of them.
        pixels: uint8 [n, H, W, 3], those images.
        wanted: The class each was made for, None where there is none (noise).
        predicted: The teacher's class of each; empty for a teacher without classes, as is
        confidence: its probability, in [0, 1].
        mapped: Positions of k images, spread evenly, too.
        starts: uint8 [k, H, W, 3], those images.
        attention: fp32 [k, blocks, heads, patches], theirs: how much the class token looks at each patch,
            or, in a model without one, the patches on average.
        measures: Numbers by the names of qvit.synthesis.measures.
        profiles: Numbers for every block, by the names there.
        ranges: Of the input of every Linear, see ranges.py.
    """

    role: str
    count: int
    shown: Sequence[int]
    pixels: "NDArray[np.uint8]"
    wanted: Sequence[int] | None
    predicted: Sequence[int]
    confidence: Sequence[float]
    mapped: Sequence[int]
    starts: "NDArray[np.uint8]"
    attention: "Tensor"
    measures: Mapping[str, float]
    profiles: Mapping[str, Sequence[float]]
    ranges: "Ranges"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything a section may use.

    Attributes:
        run: The folder's own records.
        config: The teacher's shape.
        class_names: Index -> name; empty where the weights do not tell.
        synthetic: The teacher on the folder's images.
        noise: On as many images of Gaussian noise, the lower reference.
        real: On as many of the user's images, None without any.
        real_source: Where those came from, as the user wrote it.
        training: Lines of the log of a student that was trained on the images; none where none was.
    """

    run: Run
    config: "ViTConfig"
    class_names: Mapping[int, str]
    synthetic: Observation
    noise: Observation
    real: Observation | None = None
    real_source: str = ""
    training: Sequence[Mapping[str, Any]] = ()

    @property
    def observations(self) -> tuple[Observation, ...]:
        """Noise, synthetic and, where there are any, real images."""
        found = (self.noise, self.synthetic, self.real)
        return tuple(each for each in found if each is not None)

    def label(self, role: str) -> str:
        """What a set of images is called: a user's own images, made ready by the same verb, are not synthetic."""
        given = role == SYNTHETIC and not self.run.manifest["privacy"]["data_free"]
        return "given" if given else role

    @property
    def wish(self) -> str:
        """How the class of an image came to it: "asked for", or "labelled" where the images are a user's own."""
        return "asked for" if self.run.manifest["privacy"]["data_free"] else "labelled"

    @property
    def hits(self) -> int | None:
        """In how many measured images the teacher sees that class; None where there is none to see."""
        seen = self.synthetic
        if seen.wanted is None or not seen.predicted:
            return None
        return sum(a == b for a, b in zip(seen.wanted, seen.predicted, strict=True))

    def name_class(self, index: int) -> str:
        """A class as a person would call it: "tiger shark", or "class 3"."""
        return self.class_names.get(index, f"class {index}").split(",")[0]
