"""Whole runs in processes of their own, so that they can be killed."""

import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvit.distillation import Pixels, Pool, Processes, distil, joined
from qvit.errors import UsageError
from qvit.models.student import Seen
from qvit.models.watching import FloatTeacher
from tests.distillation.students import (
    TinyStudent,
    TinyTeacher,
    quick,
    small_vit,
    static_student,
    tiny_pool,
)
from tests.support import STATISTICS, images_for

TOGETHER = {
    "plain": quick("kl-classes", lr=0.05),
    "inundated": quick("ait", lr=1e-2, inundation=0.01),
}
# Static ranges: learned ones, and ones that follow the activations. At 8 bits and in few steps, so that a code which is
# rounded otherwise does not make another student.
STATIC = {
    "lsq": ({}, quick("kl", lr=0.05, epochs=1)),
    "ema": ({"activations": "ema"}, quick("kl", lr=0.05, epochs=1, track=1.0)),
}
PIXELS = Pixels(STATISTICS["mean"], STATISTICS["std"])


def run_vit(folder: Path, save_seconds: float = 0.0) -> dict[str, Any]:
    """Everything at once: a ViT with learned ranges, crops, head distances, inundation."""
    vit = small_vit()
    torch.manual_seed(0)
    student = static_student(vit)
    pool = Pool(images_for(vit, 18).half(), torch.randint(7, (18,)))
    settings = quick("mimiq", epochs=5, augment=True, inundation=1e-3, classes=0.1)
    return distil(
        FloatTeacher(vit),
        student,
        pool,
        settings,
        seed=4,
        pixels=PIXELS,
        folder=folder,
        progress=False,
        save_seconds=save_seconds,
    )


def run_static(name: str, folder: Path, processes: Processes | None = None) -> dict[str, Any]:
    """A ViT of STATIC before and after a training, alone or one of several processes, and what was `found`."""
    vit = small_vit()
    changes, settings = STATIC[name]
    torch.manual_seed(0)
    pool = Pool(images_for(vit, 18).half(), torch.arange(18) % 7)
    student = static_student(vit, 8, **changes)
    if processes is not None and processes.rank:
        student.calibrate(3 * images_for(vit, 8))  # the ranges of the first are everybody's
    before = deepcopy(student.state_dict())
    found = distil(
        FloatTeacher(vit), student, pool, settings, seed=4, folder=folder,
        processes=processes, progress=False,
    )  # fmt: skip
    return {"before": before, "after": student.state_dict(), "found": found["after"]}


class FailingTeacher(TinyTeacher):
    """A teacher that is gone after so many answers."""

    def __init__(self, answers: int) -> None:
        super().__init__()
        self.answers = answers

    def __call__(self, images: Tensor) -> Seen:
        """See TinyTeacher. Raises InterruptedError once it is gone."""
        self.answers -= 1
        if self.answers < 0:
            raise InterruptedError
        return super().__call__(images)


def run_together(rank: int, count: int, port: int, folder: Path) -> None:
    """One of several gloo processes, as torchrun would start it. Every run once as a whole, once with a break; those
    of static ranges; and one that only the first process has a state of.
    """
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    with joined() as processes:
        for name, settings in TOGETHER.items():
            for part, teacher in (
                (name, TinyTeacher()),
                (f"{name}-broken", FailingTeacher(8)),
                (f"{name}-broken", TinyTeacher()),
            ):
                student = TinyStudent()
                with torch.no_grad():
                    student.first.bias.add_(rank)  # the first process's weights are everybody's
                try:
                    distil(
                        teacher, student, tiny_pool(), settings, seed=0, folder=folder / part,
                        processes=processes, progress=False, save_seconds=0.0,
                    )  # fmt: skip
                except InterruptedError:
                    continue
                torch.save(student.state_dict(), folder / f"{part}{rank}.pt")
        for name in STATIC:
            torch.save(run_static(name, folder / name, processes), folder / f"{name}{rank}.pt")
        own = folder / ("plain" if rank == 0 else "elsewhere")
        try:
            distil(
                TinyTeacher(), TinyStudent(), tiny_pool(), TOGETHER["plain"], seed=0, folder=own,
                processes=processes, progress=False,
            )  # fmt: skip
        except UsageError as error:
            (folder / f"told{rank}").write_text(str(error))
