import re
import socket
import subprocess
import sys

import pytest
import torch

from qvit.errors import UsageError
from qvit.synthesis.distribution import Place, joined, processes_here
from tests.synthesis.settings import small, work
from tests.synthesis.test_run import contents, losses

PROGRAM = """
import json, sys
from pathlib import Path
from tests.synthesis.settings import demo, small
from qvit import synthesis
found = synthesis.synthesize(demo(), small("psaq"), Path(sys.argv[1]), seed=5, resume="never", progress=False)
print(json.dumps([found["made"], found["complete"]]))
"""


def test_batches_are_dealt_out_evenly():
    shares = [Place(rank, 3, "cpu").mine(range(8)) for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_one_process_has_all():
    with joined("cpu", None) as place:
        assert place == Place(0, 1, "cpu")
    with joined("cpu", (1, 4)) as place:
        assert place == Place(1, 4, "cpu")


def test_shares_and_torchrun_exclude_each_other(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="use one of them"), joined("cpu", (0, 2)):
        pass


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 1),
        ({"LOCAL_WORLD_SIZE": "4"}, 1),  # left over: the run is not distributed
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, 4),
        ({"SLURM_NTASKS": "7", "SLURM_TASKS_PER_NODE": "2(x3),1"}, 2),
        ({"WORLD_SIZE": "8"}, 1),
    ],
    ids=str,
)
def test_processes_on_this_machine(environment, expected, monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS", "SLURM_TASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes_here() == expected


def test_two_gloo_processes_make_what_one_does(tmp_path, child_environment):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port),
         str(program), str(tmp_path / "two")],
        # as many as here, which other tests may have changed: sums depend on it
        env=child_environment | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # both print at about the same moment, and may share a line
    assert sum(map(int, re.findall(r"\[(\d), ", done.stdout))) == 3, done.stdout
    work(tmp_path / "one", small("psaq"), 5)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
