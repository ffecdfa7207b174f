"""What is to be timed: a folder or a float model, its rivals, batch sizes and rounds."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from qvit import zoo
from qvit.deployment.provenance import find_origin, read_architecture
from qvit.errors import UsageError
from qvit.latency.variants import FLOAT, RIVALS
from qvit.zoo import Source

ALL, FLOATS, NONE = "all", "float", "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to measure, and how long.

    Attributes:
        baselines: Names of variants, or one of "all" (each that can run here in reasonable time), "float" (those of the
            float model) and "none".
        backends: Of the quantized folder itself, each a variant.
        batches: Images a call.
        rounds: Turns of each variant at each batch size; None: as many as fit 40 seconds, from 12 to 400.
        device: "cpu" or "cuda".
        seed: Of images, and of float weights where there are none.
        footprint: Whether memory, loading and first calls are measured, which takes a process a variant.
        agreement: Synthetic images on which answers are compared with the float model's; 0 for none.
        samples: Whether rows keep the time of every call, at most 100 a round.
    """

    baselines: tuple[str, ...] = (ALL,)
    backends: tuple[str, ...] = ("auto",)
    batches: tuple[int, ...] = (1, 8)
    rounds: int | None = None
    device: str = "cpu"
    seed: int = 0
    footprint: bool = True
    agreement: int = 64
    samples: bool = False

    def __post_init__(self) -> None:
        known = (*FLOAT, *RIVALS)
        for name in self.baselines:
            if name not in known and (len(self.baselines) > 1 or name not in (ALL, FLOATS, NONE)):
                raise UsageError(
                    f"--baseline {name}: unknown; use {ALL}, {FLOATS}, {NONE}, or names of {', '.join(known)}"
                )
        if not self.baselines:
            raise UsageError(f"no baseline named; --baseline {NONE} measures the folder alone")
        if not self.batches or min(self.batches) < 1:
            raise UsageError(f"batch sizes must be 1 or more, got {list(self.batches)}")
        if not self.backends:
            raise UsageError("no backend named; --backend auto takes the one that suits the device")
        for name in ("batches", "backends"):  # one named twice would be two rows alike
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        if self.rounds is not None and self.rounds < 1:
            raise UsageError(f"--rounds {self.rounds}: at least 1 is needed")
        if self.agreement < 0:
            raise UsageError(f"--agreement {self.agreement}: a number of images, 0 for none")

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the baselines meant, in the order of the registry."""
        if self.baselines == (NONE,):
            return ()
        if self.baselines == (FLOATS,):
            return tuple(FLOAT)
        known = (*FLOAT, *RIVALS)
        return tuple(n for n in known if n in self.baselines or self.baselines == (ALL,))

    @property
    def chosen(self) -> bool:
        """Whether the user named the variants, and means them however slow they are."""
        return self.baselines not in ((ALL,), (FLOATS,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The model that is timed: a quantized folder, or the name of a float model.

    `weights`: the float model's file, where it is at hand; random weights are as fast, and agree with nothing.
    """

    folder: Path | None = None
    model: str | None = None
    weights: Path | None = None

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """Raises InputError for a folder that is no quantized model."""
        origin = find_origin(folder).source
        return cls(folder=folder, weights=None if origin is None else origin.weights)

    @property
    def name(self) -> str:
        """What is timed, as it was called: the folder, or the model."""
        return self.model or "" if self.folder is None else self.folder.resolve().name

    @property
    def source(self) -> Source:
        """The float architecture, with its weights or random ones."""
        if self.folder is not None:
            source = read_architecture(self.folder)
        else:
            source = zoo.resolve(self.model or "", pretrained=False)
        known = self.weights is not None
        return dataclasses.replace(source, pretrained=known, weights=self.weights)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a process of its own."""
        return {name: str(v) if v else None for name, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of to_dict."""
        paths = {
            name: Path(values[name]) if values[name] else None for name in ("folder", "weights")
        }
        return cls(model=values["model"], **paths)
