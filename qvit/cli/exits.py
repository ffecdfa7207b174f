"""Exceptions to exit codes: the only place where a failure becomes a sentence on stderr and a
number.
"""

import errno
import logging
import os
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator, Sequence

import click

from qvit.errors import QvitError

OK = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130

# safetensors is written in Rust and reports a failed write as text: "I/O error: ... (os error 28)".
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_FULL = {errno.ENOSPC, errno.EDQUOT}


def report_failure(error: BaseException, argv: Sequence[str], *, verbose: bool) -> int:
    """Say on stderr what went wrong and return the exit code. `verbose` adds the traceback."""
    code, message = _explain(error, argv)
    if isinstance(error, BrokenPipeError):
        silence_stdout()
    elif message:
        logging.getLogger("qvit").debug("the traceback", exc_info=error)
        if verbose and not isinstance(error, click.ClickException):
            traceback.print_exception(error, file=sys.stderr)
        print_line(message)
    return code


def print_line(message: str) -> None:
    """One line of the program's own on stderr."""
    click.echo(f"qvit: {message}", err=True)


def silence_stdout() -> None:
    """Point stdout at nothing, so that flushing what is left in it at exit cannot fail a second
    time.
    """
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return  # stdout is not a file, as in a test
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, descriptor)
    os.close(nothing)


def _explain(error: BaseException, argv: Sequence[str]) -> tuple[int, str]:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return USAGE, ""
    if isinstance(error, click.ClickException):
        return error.exit_code, _usage_message(error)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        again = shlex.join(["qvit", *argv])
        # its unit of work is a batch: what is finished stays
        keeps = "synthesize" in argv[:1]
        return INTERRUPTED, (
            "interrupted; no half-written folder or file is left behind. "
            f"To {'go on where it was' if keeps else 'start over'}, run the same command again:\n  {again}"
        )
    number = find_errno(error)
    if number in _FULL:
        return FAILED, _full_message(error)
    if number == errno.EFBIG:
        return FAILED, "a file grew past the limit set for this process; see `ulimit -f`"
    if isinstance(error, QvitError):
        return error.exit_code, str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return FAILED, f"out of memory: {error}; use a smaller model or a smaller --batch"
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return FAILED, f"{error.strerror or error}{where}"
    return FAILED, (
        f"failed with {type(error).__name__}: {error}\nThis is a fault of qvit. `-v` shows the "
        "traceback; please report it with what `qvit doctor` prints."
    )


def _usage_message(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    hint = f"\nSee `{context.command_path} --help`." if context is not None else ""
    return error.format_message() + hint


def find_errno(error: BaseException) -> int | None:
    """The operating system's number behind an error, also where a library wrapped it or put it in
    its text.
    """
    for link in _chain(error):
        if isinstance(link, OSError) and link.errno is not None:
            return link.errno
        if match := _OS_ERROR.search(str(link)):
            return int(match[1])
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _full_message(error: BaseException) -> str:
    filename = next(
        (e.filename for e in _chain(error) if isinstance(e, OSError) and e.filename), None
    )
    place = os.path.dirname(os.path.abspath(os.fsdecode(filename))) if filename else os.getcwd()
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free / 2**20
    return (
        f"the disk is full: {filename or 'the output'} could not be written ({free:.0f} MiB are "
        f"free at {place}). Nothing half-written is left behind. Free some space there, or write "
        "to another disk with -o."
    )
