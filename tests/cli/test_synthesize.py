"""`qvit synthesize` from the command line: what it writes, what it refuses, and how it goes on."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from qvit.cli import run
from qvit.cli.synthesize import choose_settings, parse_shard
from qvit.errors import UsageError
from tests.cli.test_bad_input import start_on_a_full_disk

SMALL = ["-n", "6", "--batch", "2", "--iterations", "3"]


def options(**given):
    names = ("method", "images", "batch", "iterations", "sparse", "data", "class_map")
    return dict.fromkeys(names) | {"settings": (), "precision": "auto"} | given


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["MODEL"]),
        (["demo_vit", "-n", "0"], ["-n 0", "at least 1"]),
        (["demo_vit", "-n", "-5"], ["-n -5", "at least 1"]),
        (["demo_vit", "--batch", "0"], ["--batch 0", "at least 1"]),
        (["demo_vit", "--iterations", "0"], ["--iterations 0", "at least 1"]),
        (["demo_vit", "--method", "mimik"], ["did you mean mimiq"]),
        (["demo_vit", "--method", "noise", "--sparse"], ["sparse", "noise", "mimiq"]),
        (["demo_vit", "--method", "mimiq", "--images", "x"], ["mimiq reads no images"]),
        (["demo_vit", "--method", "folder"], ["--images"]),
        (["demo_vit", "--set", "weights.bits=4"], ["synthesis.lr"]),
        (["demo_vit", "--set", "synthesis.atention=4"], ["synthesis.attention"]),
        (["demo_vit", "--set", "synthesis.lr=fast"], ["synthesis.lr", "float"]),
        (["demo_vit", "--shard", "4/4"], ["--shard", "0/4"]),
        (["demo_vit", "--shard", "0/0"], ["--shard", "0/4"]),
        (["demo_vit", "--shard", "half"], ["--shard", "0/4"]),
        (["demo_vit", "--seed", "-1"], ["seed"]),
        (["demo_resnet"], ["ResNet", "deit"]),
        (["swin_t"], ["swin", "deit"]),
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_refused(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert run(["synthesize", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    for word in words:
        assert word in err, err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"), [(None, None), ("0/1", (0, 1)), ("2/4", (2, 4)), ("11/12", (11, 12))]
)
def test_shards_are_counted_from_zero(text, expected):
    assert parse_shard(text) == expected


def test_flags_change_the_preset_and_set_has_the_last_word():
    settings = choose_settings(
        options(
            method="psaq", images=5, batch=5, settings=("synthesis.lr=0.5", "synthesis.batch=3")
        )
    )
    assert (settings.method, settings.images, settings.batch, settings.lr) == ("psaq", 5, 3, 0.5)
    assert settings.iterations == 1000
    with pytest.raises(UsageError, match=r"synthesis\.lr"):
        choose_settings(options(method="psaq", settings=("synthesis.lr=-1",)))


def test_dry_run_writes_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    assert run(["synthesize", "demo_vit", "-n", "40", "-o", str(out), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["out"] == str(out)
    assert plan["images"] == 40
    assert plan["estimated_memory_bytes"] > 1e8
    assert plan["estimated_seconds"] > 0
    assert plan["reads_images"] is False
    assert list(tmp_path.iterdir()) == []


def make(out, *extra):
    return run(["synthesize", "demo_vit", *SMALL, "--precision", "float32", "-o", str(out), *extra])


def contents(folder):
    """Every file of a finished run but its log, which holds times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".jsonl"
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert make(out, "-q") == 0
    return contents(out)


def test_json_is_the_only_thing_on_stdout(tmp_path, capsys):
    out = tmp_path / "out"
    assert make(out, "--json") == 0
    printed, remarks = capsys.readouterr()
    found = json.loads(printed)
    assert (found["images"], found["batches"], found["complete"]) == (6, 3, True)
    assert found["images_read"] == 0
    assert found["path"] == str(out)
    assert "demo_vit = " in remarks
    assert "6 images in 3 batches by mimiq: about" in remarks
    assert "GB of memory" in remarks


def test_shares_add_up_to_the_whole_run(tmp_path, undisturbed):
    """In either order, and the last one to finish completes the folder."""
    out = tmp_path / "out"
    assert make(out, "-q", "--shard", "1/2") == 0
    assert len(list((out / "shards").iterdir())) == 1
    assert make(out, "-q", "--shard", "0/2") == 0
    assert contents(out) == undisturbed
    assert contents(out) == undisturbed


def test_same_command_goes_on_and_never_refuses(tmp_path, capsys, undisturbed):
    out = tmp_path / "out"
    assert make(out, "-q") == 0
    (out / "shards" / "000001.safetensors").unlink()
    capsys.readouterr()
    assert make(out, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["made"], found["found"]) == (1, 2)
    assert contents(out) == undisturbed
    assert contents(out) == undisturbed
    assert make(out, "--resume", "never") == 2
    assert "--resume auto" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (["--seed", "1"], "seed"),
        (["--set", "synthesis.lr=0.2"], "settings"),
        (["-n", "8"], "settings"),
    ],
    ids=["seed", "settings", "count"],
)
def test_folder_of_another_run_is_refused(tmp_path, capsys, change, word):
    out = tmp_path / "out"
    assert make(out, "-q") == 0
    before = contents(out)
    capsys.readouterr()
    assert make(out, *change) == 2
    err = capsys.readouterr().err
    assert "another run" in err
    assert word in err
    assert contents(out) == before


def test_folder_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert make(tmp_path) == 2
    assert "something else" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_batch_larger_than_memory_is_refused_before_anything(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [
        "synthesize",
        "demo_vit",
        "-n",
        "100000000",
        "--batch",
        "100000000",
        "-o",
        str(out),
    ]
    assert run(arguments) == 2
    err = capsys.readouterr().err
    assert "GB of memory" in err
    assert "try --batch" in err
    assert not out.exists()


def test_processes_of_torchrun_share_the_work(tmp_path, child_environment, undisturbed):
    """Two of them, gloo: the bytes of one process, one JSON object, printed by the first."""
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
    ]
    verb = ["synthesize", "demo_vit", *SMALL, "--precision", "float32", "-o", str(out), "--json"]
    done = subprocess.run(
        [*command, "-m", "qvit", *verb],
        env=child_environment | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["complete"] is True
    assert found["batches"] == 3
    assert done.stderr.count("demo_vit = ") == 1
    assert contents(out) == undisturbed
    assert contents(out) == undisturbed


def test_ctrl_c_keeps_what_is_finished(start_qvit, tmp_path):
    out = tmp_path / "out"
    arguments = [
        "synthesize",
        "demo_vit",
        "-n",
        "400",
        "--batch",
        "2",
        "--iterations",
        "20",
        "-o",
        out,
    ]
    with start_qvit(arguments) as process:
        deadline = time.monotonic() + 120
        while not list(out.glob("shards/*.safetensors")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "go on where it was" in stderr
    assert "qvit synthesize demo_vit -n 400" in stderr
    assert "Traceback" not in stderr
    assert not list(out.rglob("*.partial"))
    assert 1 <= len(list(out.glob("shards/*"))) < 200


def test_full_disk(start_qvit, tmp_path):
    """No half-written shard is left; 64 KiB hold no batch of 64 images."""
    room = tmp_path / "room"
    room.mkdir()
    arguments = [
        "synthesize",
        "demo_vit",
        "--method",
        "noise",
        "-n",
        "64",
        "--batch",
        "64",
        "-o",
        room / "out",
    ]
    started, word = start_on_a_full_disk(start_qvit, arguments, room)
    with started as process:
        _, stderr = process.communicate()
    assert process.returncode == 1, stderr
    assert word in stderr
    assert "Traceback" not in stderr
    assert not list(room.rglob("*.safetensors"))
    assert not list(room.rglob("*.partial"))
