"""However often a run is killed, it ends with the bytes of one that was not."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import get_context

import pytest

from qvit.recipe import Synthesis
from tests.synthesis.settings import work
from tests.synthesis.test_run import contents, losses, make

SMALL_RUN = Synthesis.preset("psaq", images=8, batch=2, iterations=6)


def run_until_killed(context, out, kills, moments):
    """Start the run over and over, killing it at random moments, until it ends by itself; returns the kills."""
    killed = 0
    for _ in range(40):
        process = context.Process(target=work, args=(out, SMALL_RUN, 1))
        process.start()
        if killed < kills:
            wait_for_work(out, process, moments.uniform(0.0, 0.3))
            process.kill()
            process.join()
            killed += process.exitcode == -signal.SIGKILL
        else:
            process.join()
        if process.exitcode == 0:
            return killed
    raise AssertionError("it never ended")


def wait_for_work(out, process, seconds):
    """Until something in the folder changes, and a little longer: loading takes most of a short run."""

    def state():
        return sorted(p.name for p in out.rglob("*"))

    before, deadline = state(), time.monotonic() + 60
    while process.is_alive() and state() == before and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(seconds)


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments_a_run_ends_as_if_it_had_not_been(kills, tmp_path):
    context = get_context("forkserver")
    context.set_forkserver_preload(
        ["qvit.synthesis"]
    )  # so that a process starts in a fraction of a second
    assert run_until_killed(context, tmp_path / "undisturbed", 0, random.Random(0)) == 0
    happened, moments = 0, random.Random(kills)
    for number in range(
        20
    ):  # a run may end before its last kill: others are begun until all have happened
        out = tmp_path / f"disturbed{number}"
        happened += run_until_killed(context, out, kills - happened, moments)
        assert contents(out) == contents(tmp_path / "undisturbed")
        assert losses(out) == losses(tmp_path / "undisturbed")
        if happened >= kills:
            break
    assert happened >= kills


def test_half_written_files_of_the_killed_are_swept(tmp_path):
    run = tmp_path / "run"
    make(run, shard=(0, 2))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine, theirs = f"{socket.gethostname()}-{gone.pid}", "elsewhere-1"
    for owner in (mine, theirs, f"{socket.gethostname()}-{os.getpid()}"):
        (run / "shards" / f".000001.safetensors.{owner}.partial").write_bytes(b"half")
    make(run)
    left = [p.name for p in (run / "shards").glob(".*")]
    assert left == [
        f".000001.safetensors.{theirs}.partial"
    ]  # of another machine: nobody here can tell
