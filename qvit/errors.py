"""The errors a user can cause, each with the exit code that the command line returns for it."""


class QvitError(Exception):
    """Something failed while running (exit code 1)."""

    exit_code = 1


class UsageError(QvitError):
    """What was asked for makes no sense or is not supported (exit code 2)."""

    exit_code = 2


class RequirementError(QvitError):
    """A device, package or download that the request needs is missing (exit code 3)."""

    exit_code = 3


class InputError(QvitError):
    """A file or folder given as input is absent, corrupt or does not fit (exit code 4)."""

    exit_code = 4


class GateError(QvitError):
    """The result is valid but misses a bound that the user set (exit code 5)."""

    exit_code = 5
