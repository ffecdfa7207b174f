"""Passes of a model that were recorded once, by batch size, and are replayed: when one is taken, and by whom.

How a pass is recorded is a recorder's business: `cuda_graphs` on a card.
"""

import threading
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Recording:
    """A pass: `replay` computes `logits` of `images`, both always the same memory."""

    images: Tensor
    logits: Tensor
    replay: Callable[[], None]


class Recorder(Protocol):
    """Makes recordings that share memory, so that no two of them may run at once."""

    def record(self, run: Run, images: Tensor) -> Recording:
        """Record `run` for images of this shape; raises whatever is in the way."""
        ...

    def may_replay(self) -> bool:
        """Whether a replay may be asked for where the caller is: within another recording none may."""
        ...

    def enter(self) -> None:
        """What is asked of the device from now on comes after the last `leave`, on whichever stream that was."""
        ...

    def leave(self) -> None:
        """A replay and all that reads its result has been asked for."""
        ...

    def close(self) -> None:
        """Return when the device has finished with the recordings, which are given up then."""
        ...


class RecordedPasses:
    """The recordings of one model: one set of memory, and a lock that a call holds while it asks for its work.

    A set for each thread would cost its memory, and gain nothing: replays share one device. The lock is held while a
    copy, a replay and another copy are put in the caller's stream, not until they are done. Copies and pickles are
    empty.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recorder: Recorder | None = None
        self._held: dict[Hashable, Recording] = {}
        self._weights: list[Tensor] = []

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._held)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Empty: recordings are of one model's memory."""
        return type(self)()

    def __reduce__(self) -> tuple[Any, ...]:
        """Empty, as a copy."""
        return type(self), ()

    def record(
        self,
        make_recorder: Callable[[], Recorder],
        run: Run,
        images: Tensor,
        place: Hashable,
        weights: Iterable[Tensor],
    ) -> None:
        """Record `run` for images of this shape, unless that is done already.

        place: device and backend that it is recorded for; weights: all that it reads beside images, whose memory is
        kept from now on. Raises what the recorder raises; what was recorded before stays. Other callers wait.
        """
        with self._lock:
            key = place, images.shape
            if key in self._held:
                return
            recorder = self._recorder or make_recorder()
            recording = recorder.record(run, images)
            self._recorder, self._held[key] = recorder, recording
            # aliases: somebody who gives a parameter other memory shall get old numbers and not a stranger's
            self._weights = [tensor.detach() for tensor in weights]

    def replay(self, images: Tensor, place: Hashable, dtype: torch.dtype) -> Tensor | None:
        """Logits of images by a recorded pass, in memory of their own; None where none is recorded for their shape."""
        with self._lock, torch.no_grad():
            found = self._held.get((place, images.shape))
            if found is None or self._recorder is None or not self._recorder.may_replay():
                return None
            self._recorder.enter()
            found.images.copy_(images)
            found.replay()
            logits = found.logits.to(dtype, copy=True)
            self._recorder.leave()
            return logits

    def drop(self) -> None:
        """Give all of them up: what they were recorded of is about to change."""
        with self._lock:
            recorder, self._recorder = self._recorder, None
            if recorder is not None:
                recorder.close()
            self._held.clear()
            self._weights.clear()
