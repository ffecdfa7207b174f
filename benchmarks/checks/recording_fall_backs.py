"""Which ops the `triton` backend hands to the reference: beside the reference these would agree with themselves."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from qvit_kernels import composed
from qvit_kernels.registration import SCHEMAS


@contextmanager
def recording() -> Iterator[list[str]]:
    """Their names, for what runs in this block; the reference itself must not run in it."""
    names: list[str] = []

    def record(name: str, original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            names.append(name)
            return original(*arguments)

        return call

    with ExitStack() as patches, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the backend says so too, once
        for name in SCHEMAS:
            wrapped = record(name, getattr(composed, name))
            patches.enter_context(mock.patch.object(composed, name, wrapped))
        yield names
