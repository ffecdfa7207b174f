"""Whether the figures of `qvit bench` are those of a stopwatch outside it.

    python benchmarks/stopwatch.py demo_vit-w8a8 --batch 8 --rounds 400 -o stopwatch.json

The stopwatch is a process of its own with its own models, that knows nothing of the report: fp32 eager as timm runs it,
and the folder. It is read after each of the report's rounds, so that both see the same minutes of the machine. A
speed-up is the median over readings of the quotient of a reading's medians, as the report's is over its rounds, and
once more the quotient of the medians of all calls, which is what a reader of the report's times makes. The report is
made in the environment of the `qvit` command, the stopwatch in yours. Exits with 1 where a figure is more than 5 % from
what the stopwatch says.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

sys.path[:0] = [
    str(Path(__file__).resolve().parent.parent),
    str(Path(__file__).resolve().parent.parent / "kernels"),
]

from qvit.__main__ import limit_spinning  # noqa: E402 - after the tree is on the path

_OUTSIDE = dict(os.environ)
if __name__ == "__main__":  # whoever imports this keeps the environment as it is
    limit_spinning()

from benchmarks.cells import ROOT, circumstances, write_whole  # noqa: E402 - after the tree is on the path
from qvit import latency  # noqa: E402
from qvit.latency import Request, Subject  # noqa: E402
from qvit.zoo import Source  # noqa: E402

ALLOWED = 0.05
BASELINES = ("fp32", "fp32-compile")  # without the compiled one, no speed-up is reported

# Written with the clock alone. It answers each line with the calls' milliseconds; the first two, after it has waited
# for the report's round, are not counted.
_STOPWATCH = """
import json, sys, time, timm, torch; from qvit.deployment import QuantViT
folder, name, settings, shape, calls = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])
models = [timm.create_model(name, **settings).eval(), QuantViT.from_pretrained(folder)]
models[1].warmup(shape[:1]); images = torch.randn(shape)
def call(model):
    start = time.perf_counter(); model(images); return 1000 * (time.perf_counter() - start)
with torch.inference_mode():
    for line in sys.stdin:
        print(json.dumps([[call(model) for _ in range(calls)][2:] for model in models]), flush=True)
"""


class Stopwatch:
    """The process; a reading is what both models took."""

    def __init__(self, folder: Path, source: Source, batch: int, calls: int) -> None:
        config = source.pretrained_cfg
        settings = {"num_classes": config["num_classes"], **source.model_args}
        given = map(json.dumps, (settings, [batch, *config["input_size"]], calls))
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                _STOPWATCH,
                str(folder.resolve()),
                source.architecture,
                *given,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=_OUTSIDE | {"PYTHONPATH": os.pathsep.join(sys.path[:2])},
        )

    def read(self) -> tuple[list[float], list[float]]:
        """Milliseconds of each call: of the float model, and of the folder."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print("again", file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the stopwatch has stopped; what it said is above")
        theirs, ours = json.loads(answer)
        return theirs, ours

    def __enter__(self) -> "Stopwatch":
        self.read()  # models are loaded, caches and allocators warm
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def hold_against(folder: Path, batch: int, rounds: int, calls: int = 8) -> dict[str, Any]:
    """A report of a folder beside a stopwatch that is read in each of its rounds.

    Returns figure -> {"report", "stopwatch", "ratio" (the report's by the stopwatch's)}: the median times of fp32 and
    of the folder in ms, how many times as fast the folder is by rounds, and by these times; and what the report says of
    the machine.
    """
    subject = Subject.of_folder(folder)
    request = Request(
        baselines=BASELINES, batches=(batch,), rounds=rounds, footprint=False, agreement=0
    )
    readings: list[tuple[list[float], list[float]]] = []
    with Stopwatch(folder, subject.source, batch, calls) as watch:
        report = latency.bench(subject, request, after_round=lambda: readings.append(watch.read()))
    rows = {row["variant"]: row for row in report["rows"]}
    (own,) = (row for name, row in rows.items() if name not in BASELINES)
    theirs, ours = (
        statistics.median([ms for reading in readings for ms in reading[i]]) for i in (0, 1)
    )
    paired = statistics.median(
        [
            statistics.median(of_float) / statistics.median(of_folder)
            for of_float, of_folder in readings
        ]
    )
    reported = (rows["fp32"]["latency_ms"]["p50"], own["latency_ms"]["p50"])
    found = {
        "fp32_ms": (reported[0], theirs),
        f"{own['variant']}_ms": (reported[1], ours),
        "speedup": (own["speedup_vs"]["fp32"]["ratio"], paired),
        "speedup_of_medians": (reported[0] / reported[1], theirs / ours),
    }
    figures = {
        name: {"report": ours, "stopwatch": theirs, "ratio": ours / theirs}
        for name, (ours, theirs) in found.items()
    }
    return {
        "model": report["model"],
        "scheme": report["scheme"],
        "figures": figures,
        "batch": batch,
        "rounds": rounds,
        "warnings": report["warnings"],
        **circumstances(),
    }


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--batch", default=1, show_default=True)
@click.option("--rounds", default=400, show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path))
def main(folder: Path, batch: int, rounds: int, out: Path | None) -> None:
    """Measure, print, keep, judge."""
    found = hold_against(folder, batch, rounds)
    for name, figure in found["figures"].items():
        print(
            f"{name}: report {figure['report']:.3f}, stopwatch {figure['stopwatch']:.3f}, {figure['ratio']:.3f}"
        )
    if out is not None:
        write_whole(out, json.dumps(found, indent=1) + "\n")
    sys.exit(any(abs(figure["ratio"] - 1) > ALLOWED for figure in found["figures"].values()))


if __name__ == "__main__":
    main()
