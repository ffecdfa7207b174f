"""The command line: read the arguments, make one call, print the result.

Nothing heavy is imported here; a verb imports what it needs when it runs, so that `qvit --help` is
immediate.
"""

import os
import sys
from collections.abc import Sequence

import click

from qvit import __version__
from qvit.cli import (
    bench,
    doctor,
    evaluate,
    info,
    models,
    quantize,
    report,
    search,
    sense,
    synthesize,
)
from qvit.cli.exits import FAILED, OK, report_failure, silence_stdout
from qvit.cli.session import Result, Session, print_result

_EXIT_CODES = """
\b
Exit codes:
  0  ok
  1  failed while running
  2  the command line makes no sense, or asks for what is not supported
  3  something it needs is missing (a device, a package, a download)
  4  an input file or folder is missing, broken or does not fit
  5  a gate was not met (--min-top1, --max-drop, --min-speedup, --fail-slower)
  130  interrupted
"""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EXIT_CODES,
)
@click.version_option(__version__, prog_name="qvit", message="%(prog)s %(version)s")
def cli() -> None:
    """Low-bit Vision Transformers from pretrained weights alone: no images needed."""


for _module in (quantize, search, synthesize, evaluate, bench, sense, report, info, models, doctor):
    cli.add_command(_module.command)


def run(argv: Sequence[str]) -> int:
    """Run one command line (without the program's name) and return its exit code; never raises,
    never exits.
    """
    session = Session()
    try:
        result = cli.main(list(argv), prog_name="qvit", standalone_mode=False, obj=session)
        if not isinstance(result, Result):
            sys.stdout.flush()
            return result or OK  # --help and --version have printed; click returns their exit code
        if not result.silent:
            print_result(result, session)
        if result.missed is not None:
            return report_failure(result.missed, argv, verbose=False)
        return OK
    except SystemExit as leaving:  # click, when the reader of its help went away
        return leaving.code if isinstance(leaving.code, int) else FAILED
    except BaseException as error:  # noqa: BLE001 - the boundary: every failure becomes an exit code
        code = report_failure(error, argv, verbose=session.verbosity > 0)
        _settle_stdout()
        return code


def _settle_stdout() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        silence_stdout()


def main() -> None:
    """Entry point of the `qvit` command."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: `qvit ... >&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open until the process ends
    sys.exit(run(sys.argv[1:]))
