"""Warnings that a process gives once: what they say stays true for the thousand calls that follow."""

import warnings

_given: set[str] = set()


def warn_once(message: str) -> None:
    """A RuntimeWarning at the caller's caller, the first time that this is said."""
    if message not in _given:
        _given.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=3)
