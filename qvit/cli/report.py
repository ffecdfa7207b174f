"""`qvit report`: one page about a quantized model or a folder of images, to look at and to send."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from qvit.cli.kept import keep_evaluation
from qvit.cli.session import Result, Session, outline, verb
from qvit.cli.target import as_folder
from qvit.errors import UsageError


@verb("report")
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@click.option(
    "--data", metavar="PATH",
    help="Evaluate a quantized model on these labelled images first, as `qvit eval` does.",
)  # fmt: skip
@click.option("--class-map", metavar="FILE", help="With --data: class names in index order.")
@click.option(
    "--images", metavar="PATH",
    help="Real images to compare synthetic ones with: a folder, a .tar, or demo[:COUNT] for rendered ones.",
)  # fmt: skip
@click.option(
    "--limit",
    type=int,
    help="Measure so many images of each kind at most [256], and evaluate so many of --data [all].",
)
@click.option(
    "--weights", type=click.Path(path_type=Path), metavar="FILE",
    help="The float weights, where they are no longer at their place.",
)  # fmt: skip
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Folder to write the report to [FOLDER]."
)
def command(session: Session, folder: Path, **options: Any) -> Result:
    """Write a page about FOLDER: report.html, everything in one file, and the same as report.md.

    Of a quantized model: accuracy, latency and why, sensitivity of the layers, bits and provenance, as far as `eval`,
    `bench` and `sense` have left them in FOLDER; --data evaluates first.

    Of images that `qvit synthesize` made: the images, and what the float model that they came from sees in them;
    grid.png is the grid as a picture. Real images are read only if given.
    """
    if options["limit"] is not None and options["limit"] < 1:
        raise UsageError(f"--limit {options['limit']}: at least 1 image is needed")
    quantized = as_folder(str(folder)) is not None
    for name, given, fits in (("--data", "data", quantized), ("--images", "images", not quantized)):
        if options[given] is not None and not fits:
            kind = "a quantized model" if quantized else "a folder of images"
            raise UsageError(f"{name}: {folder} is {kind}, see `qvit report --help`")
    if quantized and options["data"] is None:
        for name in ("class_map", "weights"):
            if options[name] is not None:
                raise UsageError(f"--{name.replace('_', '-')} is for --data, which is not given")
    if options["data"] is not None:
        _evaluate(folder, session, options)

    from qvit import report

    found = report.write_report(
        folder,
        out=options["out"],
        real=options["images"],
        limit=options["limit"] or 256,
        weights=options["weights"],
        progress=session.progress,
    )
    return Result(
        found, outline({key: found[key] for key in ("report", "markdown", "pictures", "summary")})
    )


def _evaluate(folder: Path, session: Session, options: Mapping[str, Any]) -> None:
    from qvit.evaluation import assessment

    limit = options["limit"]
    images = assessment.Images(data=options["data"], class_map=options["class_map"], limit=limit)
    found = assessment.assess_folder(
        folder, images, float_weights=options["weights"], progress=session.progress
    )
    keep_evaluation(folder, found | {"data": options["data"], "limit": limit})
