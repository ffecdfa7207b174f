"""`qvit info`: what is in a quantized folder."""

from pathlib import Path

import click

from qvit.cli.session import Result, Session, outline, verb
from qvit.cli.target import as_folder
from qvit.errors import InputError


@verb("info")
@click.argument("target", metavar="FOLDER")
def command(session: Session, target: str) -> Result:
    """Show what FOLDER holds: model, bits, sizes, licence and where it came from.

    Checks the files' headers against the configuration; loads no weights.
    """
    if as_folder(target) is None and not Path(target).is_dir():
        raise InputError(f"no such folder: {target}; `qvit models` tells about models")

    from qvit.deployment import checkpoint

    found = checkpoint.describe(Path(target))
    return Result(found, outline(found))
