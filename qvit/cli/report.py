"""`qvit report`: one page about what a folder holds, to look at and to send."""

from pathlib import Path
from typing import Any

import click

from qvit.cli.session import Result, Session, outline, verb
from qvit.errors import UsageError


@verb("report")
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@click.option(
    "--images", "data", metavar="PATH",
    help="Real images to compare with: a folder, a .tar, or demo[:COUNT] for rendered ones.",
)  # fmt: skip
@click.option(
    "--limit", default=256, show_default=True, help="Measure so many images of each kind at most."
)
@click.option(
    "--weights", type=click.Path(path_type=Path), metavar="FILE",
    help="The float weights, where they are no longer at their place.",
)  # fmt: skip
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Folder to write the report to [FOLDER]."
)
def command(session: Session, folder: Path, **options: Any) -> Result:
    """Write a page about FOLDER, images that `qvit synthesize` made: report.html, and the same as report.md.

    The page holds everything in one file. grid.png is its grid of images as a picture. The float
    model that the images came from looks at them again for it; real images are read only if given.
    """
    if options["limit"] < 1:
        raise UsageError(f"--limit {options['limit']}: at least 1 image is needed")

    from qvit import report

    found = report.write_report(
        folder,
        out=options["out"],
        real=options["data"],
        limit=options["limit"],
        weights=options["weights"],
        progress=session.progress,
    )
    return Result(
        found, outline({key: found[key] for key in ("report", "markdown", "pictures", "summary")})
    )
