"""Renewal: images are made anew from time to time, with the student as it is then (MaskAQ, ICML 2026: every 30 epochs).

Images that a student agrees on with its teacher age as the student changes. A run is a chain of spans: images, then
epochs on them, then images again. Each span is a run of its own, with folders of its own, so a chain that was
interrupted is continued by the same call and ends in the same bits: finished spans are read, and not made again.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from qvit.distillation.loop import Pixels, distil
from qvit.distillation.pool import Pool
from qvit.distillation.schedule import crossing_share, learning_rate
from qvit.errors import UsageError
from qvit.models.student import Student, Teacher
from qvit.recipe import Distillation, Synthesis
from qvit.synthesis import synthesize
from qvit.synthesis.seeds import derive_seed
from qvit.zoo import Source

CALIBRATED_ON = 32  # images that static ranges are taken from


def distil_renewed(
    source: Source,
    teacher: Teacher,
    student: Student,
    images: Synthesis,
    settings: Distillation,
    *,
    every: int,
    seed: int,
    folder: Path,
    pixels: Pixels | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a student, in place, on images that are made anew every so many epochs.

    The first images are made without the alignment, and the student's ranges are taken from them: a student whose
    ranges were set on noise would lead images to where it has none (our choice). Momentum begins anew with the images;
    the learning rate goes on over the whole chain. One process; several would have to make images in turn with it.

    Args:
        source: The float model, for the images.
        teacher: The same, as losses compare a student with it.
        student: Not calibrated yet; images are made on its device.
        images: As of MaskAQ; other methods draw other images, and pay no regard to the student.
        settings: Of the whole chain; its patience counts within a span.
        every: Epochs on the same images; the last span has what is left.
        seed: Of everything random.
        folder: Of the chain; span 0 has images-000 and training-000 in it.
        pixels: Needed by settings.augment.
        progress: Show bars on stderr, if that is a terminal.

    Returns:
        `epochs`, `images` made in all, `spans`, what `distil` returns for each with the images' `fingerprint`, the last
        span's `after`, and `seconds` of this call.

    Raises:
        UsageError: `every` is not positive, or a folder holds another run.
        QvitError: As `synthesize` and `distil`.
    """
    if every < 1:
        raise UsageError(f"new images every {every} epochs: expected 1 or more")
    start = time.perf_counter()
    spans: list[dict[str, Any]] = []
    device = next(student.parameters()).device
    for number, span in enumerate(plan_spans(settings, every)):
        made = synthesize(
            source,
            images if number else replace(images, alignment=0.0),
            folder / f"images-{number:03d}",
            seed=derive_seed(seed, "renewal", number),
            device=device.type,
            progress=progress,
            student=student if number else None,
        )
        pool = Pool.read(made["path"])
        if not number:
            student.calibrate(pool.images[:CALIBRATED_ON].float().to(device))
        found = distil(
            teacher,
            student,
            pool,
            span,
            seed=derive_seed(seed, "span", number),
            pixels=pixels,
            folder=folder / f"training-{number:03d}",
            progress=progress,
        )
        spans.append({"fingerprint": made["fingerprint"], **found})
    return {
        "epochs": sum(span["epochs"] for span in spans),
        "images": len(spans) * images.images,
        "spans": spans,
        "after": spans[-1]["after"],
        "seconds": round(time.perf_counter() - start, 2),
    }


def plan_spans(settings: Distillation, every: int) -> list[Distillation]:
    """The settings of every span: its epochs, and its part of the schedule.

    A cosine is followed by one a span, which begins and ends where the long one does. A rate that falls in steps, and
    the share of gradient inundation, are those of the span's beginning. Ranges that follow activations do so in the
    first spans.
    """
    whole, found = settings.epochs, []
    for first in range(0, whole, every):
        epochs = min(every, whole - first)
        rate = learning_rate(first, whole, settings)
        cosine = settings.schedule == "cosine"
        tracked = settings.track * whole - first
        found.append(
            replace(
                settings,
                epochs=epochs,
                lr=rate,
                lr_final=learning_rate(first + epochs, whole, settings) if cosine else 0.0,
                schedule="cosine" if cosine else "constant",
                drops=0,
                inundation=crossing_share(first, whole, settings),
                track=min(1.0, max(0.0, tracked / epochs)),
            )
        )
    return found
