"""Whole runs in processes of their own, so that they can be killed."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvit.distillation import Pixels, Pool, distil, joined
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
    """One of several gloo processes, as torchrun would start it. Every run once as a whole, once with a break; and
    one that only the first process has a state of.
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
        own = folder / ("plain" if rank == 0 else "elsewhere")
        try:
            distil(
                TinyTeacher(), TinyStudent(), tiny_pool(), TOGETHER["plain"], seed=0, folder=own,
                processes=processes, progress=False,
            )  # fmt: skip
        except UsageError as error:
            (folder / f"told{rank}").write_text(str(error))
