"""The two paths of the cpu backend."""

import pytest


@pytest.fixture(params=["torch", "compiled"])
def path(request: pytest.FixtureRequest) -> str:
    """A test twice: with torch's own kernels, and on the compiled path."""
    if request.param == "compiled":
        request.getfixturevalue("compiled_path")
    return request.param
