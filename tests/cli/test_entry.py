import os

import pytest

from qvit import __main__, cli


@pytest.fixture
def spin_counts(monkeypatch):
    """What the threads' library would be told, for an environment given."""
    monkeypatch.setattr(cli, "main", lambda: None)

    def find(**environment):
        for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        __main__.main()
        return os.environ.get("GOMP_SPINCOUNT")

    return find


def test_threads_do_not_spin_for_long_unless_told_to(spin_counts):
    assert spin_counts() == "10000"
    assert spin_counts(GOMP_SPINCOUNT="5") == "5"
    assert spin_counts(OMP_WAIT_POLICY="active") is None
