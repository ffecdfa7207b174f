"""Batches of preprocessed images, in order, decoded ahead in threads."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from qvit.data.images import ImageFolder
from qvit.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_Item = tuple["torch.Tensor | None", int, int]
_MAX_UNREADABLE = (
    0.01  # of the images; more than that is a broken copy, and its accuracy means nothing
)
_AHEAD = 2  # batches decoded before they are asked for
_LISTED = 3


class Batches:
    """An iterable of (images float32 [B, 3, height, width], labels int64 [B], indices int64 [B]).

    Images that cannot be decoded are left out and counted in `skipped`, which begins anew with
    every iteration.
    """

    def __init__(self, dataset: ImageFolder, batch_size: int, workers: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.workers = workers
        self._unreadable: list[int] = []

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    @property
    def skipped(self) -> int:
        """How many images could not be decoded so far."""
        return len(self._unreadable)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        self._unreadable = []
        for items in self._decoded():
            readable = [item for item in items if item[0] is not None]
            self._unreadable += [index for image, _, index in items if image is None]
            self._refuse_broken_copy()
            if readable:
                images, labels, indices = zip(*readable, strict=True)
                yield torch.stack(images), torch.tensor(labels), torch.tensor(indices)

    def _decoded(self) -> Iterator[list[_Item]]:
        if self.workers == 0:
            for positions in self._positions():
                yield [self.dataset[index] for index in positions]
            return
        # Threads, not processes: Pillow releases the interpreter while it decodes and resizes, and
        # nothing has to be forked beside torch's own threads or passed through /dev/shm, which is
        # 64 MB in a container.
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="qvit-images")
        pending: deque[list[Future[_Item]]] = deque()
        try:
            for positions in self._positions():
                pending.append([pool.submit(self.dataset.__getitem__, i) for i in positions])
                if len(pending) > _AHEAD:
                    yield [future.result() for future in pending.popleft()]
            while pending:
                yield [future.result() for future in pending.popleft()]
        finally:  # also when the caller stops early, or Ctrl-C
            pool.shutdown(wait=True, cancel_futures=True)

    def _positions(self) -> Iterator["Sequence[int]"]:
        for start in range(0, len(self.dataset), self.batch_size):
            yield range(start, min(start + self.batch_size, len(self.dataset)))

    def _refuse_broken_copy(self) -> None:
        count, total = self.skipped, len(self.dataset)
        if count <= _MAX_UNREADABLE * total:
            return
        shown = "; ".join(self._describe(index) for index in self._unreadable[:_LISTED])
        raise InputError(
            f"More than {_MAX_UNREADABLE:.0%} of the images cannot be read (so far {count} of"
            f" {total}): {shown}. Check the copy of the data."
        )

    def _describe(self, index: int) -> str:
        try:
            self.dataset.read(index)
        except OSError as error:
            return f"{self.dataset.path(index)} ({error})"
        return self.dataset.path(index)  # readable the second time: a flaky disk


def batches(dataset: ImageFolder, batch_size: int, *, workers: int | None = None) -> Batches:
    """Iterate over a data set in its order.

    Args:
        dataset: As `open_images` returns it.
        batch_size: Images a batch; the last one may be smaller, and so is one with unreadable
            images.
        workers: Threads that decode ahead, 0 for none; by default up to 8, leaving the rest to the
            model.

    Returns:
        The batches; iterating raises InputError when more than 1 % of the images cannot be read.

    Raises:
        UsageError: The batch size is not positive, or the number of workers negative.
    """
    if batch_size < 1:
        raise UsageError(f"The batch size must be at least 1, got {batch_size}.")
    if workers is not None and workers < 0:
        raise UsageError(f"The number of workers must be 0 or more, got {workers}.")
    # Two on a machine with two cores: decoding is the smaller part of the work there, and 8
    # saturate the interpreter.
    chosen = min(8, max(2, (os.cpu_count() or 1) // 2)) if workers is None else workers
    return Batches(dataset, batch_size, chosen)
