"""A run's own records: its manifest and its log, as the sections read them."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qvit.report.evidence import Run, Trace
from qvit.synthesis import training

# What stands beside the losses in a line of the log.
_PLACES = {"batch", "iteration", "seconds", "event", "attempt"}
MEASURES = ("head_distance", "patch_entropy")


def read_run(folder: Path, manifest: Mapping[str, Any], log: Iterable[Mapping[str, Any]]) -> Run:
    """Sort the lines of a log into traces; those of an attempt that was given up are left out.

    Where images were drawn from a generator, its training is the trace of the losses.

    A line is a sample of the losses, a measurement ("measured"), an attempt that was given up ("retried"), or the
    end of a batch ("finished") with its measures before and after.
    """
    terms: dict[str, dict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    measured: dict[str, dict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    recoveries, seconds = [], 0.0
    last = manifest["settings"]["iterations"]
    for line in log:
        batch, event = line["batch"], line.get("event")
        if event == "retried":
            for traces in (*terms.values(), *measured.values()):
                traces.pop(batch, None)
            recoveries.append(
                f"Batch {batch}: the loss was not finite at iteration {line['iteration']}; it was made again with"
                " another seed."
            )
        elif event == "measured":
            for name in MEASURES:
                measured[name][batch].append((line["iteration"], line[name]))
        elif event == "finished":
            seconds += line["seconds"]
            for name in MEASURES:
                inner = [point for point in measured[name][batch] if 0 < point[0] < last]
                ends = (0, line["before"][name]), (last, line["after"][name])
                measured[name][batch] = [ends[0], *inner, ends[1]]
        else:
            for name in line.keys() - _PLACES:
                terms[name][batch].append((line["iteration"], line[name]))
    trained = _read_training(folder)
    for line in trained:
        for name in line.keys() - _PLACES:
            terms[name][0].append((line["iteration"], line[name]))
    seconds += trained[-1]["seconds"] if trained else 0.0
    order = sorted(terms, key=lambda name: (name != "loss", name))
    return Run(
        path=folder,
        manifest=manifest,
        seconds=seconds,
        terms={name: _without_gaps(terms[name]) for name in order},
        measures={name: _without_gaps(measured[name]) for name in MEASURES} if last else {},
        recoveries=recoveries,
    )


def _without_gaps(trace: Trace) -> Trace:
    """Without values that were not finite, for which the log has null, and batches that have no others."""
    kept = {batch: [p for p in points if p[1] is not None] for batch, points in trace.items()}
    return {batch: points for batch, points in kept.items() if points}


def _read_training(folder: Path) -> list[dict[str, Any]]:
    """The lines of a generator's training; none where there is none."""
    path = folder / training.LOG
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
