"""What goes wrong is said in one clear message, with the right exit code, and leaves nothing
behind.
"""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import click
import pytest
import torch
from safetensors.torch import load_file, save_file

from qvit import errors
from qvit.cli import run
from qvit.cli.exits import report_failure


def refuse(capsys, arguments, code, *words):
    """Run a command line that must fail with that code, saying these words on stderr only."""
    capsys.readouterr()
    assert run([*map(str, arguments)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("qvit: ") or "\nqvit: " in err
    assert "Traceback" not in err
    for word in words:
        assert word in err, err


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quantize"], ["MODEL"]),
        (["quantize", "vit_t", "--nonsense"], ["--nonsense"]),
        (["quantize", "vit_t", "--w", "1"], ["--w", "2 to 8"]),
        (["quantize", "vit_t", "--dry-run", "--w", "0"], ["--w", "2 to 8"]),
        (["quantize", "vit_t", "--a", "16"], ["--a", "2 to 8"]),
        (["quantize", "vit_t", "--w", "four"], ["--w"]),
        (["quantize", "vit_t", "--set", "weight.bits=4"], ["weights.bits"]),
        (["quantize", "vit_t", "--set", "weights.bits"], ["key=value"]),
        (["quantize", "vit_t", "--recipe", "qvti"], ["did you mean qvit"]),
        (["quantize", "vit_t", "--weights", "x", "--no-pretrained"], ["--weights"]),
        (["quantize", "vit_t", "--calib-data", "demo"], ["W8A8", "learns from no images"]),
        (["quantize", "vit_t", "--w", "4", "--calib-leaves", "8"], ["beside --calib-data"]),
        (["quantize", "diet_s"], ["deit_s"]),
        (["quantize", "google/vit-base-patch16-224"], ["hf-hub:"]),
        (["eval", "vit_t"], ["--data"]),
        (["eval", "vit_t", "--data", "x", "--batch-size", "0"], ["--batch-size"]),
        (["eval", "vit_t", "--data", "x", "--float-weights", "y"], ["--weights"]),
        (["bench", "vit_t", "--batch", "1,two"], ["two"]),
        (["bench", "vit_t", "--batch", "0"], ["batch"]),
        (["bench", "vit_t", "--baseline", "fp23"], ["fp32"]),
        (["bench", "vit_t", "--baseline", "none"], ["qvit quantize"]),
        (["bench", "vit_t", "--fail-slower", "3%"], ["--fail-slower", "qvit quantize"]),
        (["sense", "vit_t", "--images", "0"], ["--images"]),
        (["bench", "vit_t", "--device", "tpu"], ["cpu or cuda"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_usage(capsys, arguments, words, flags):
    refuse(capsys, [*arguments, *flags], 2, *words)


def test_verb_that_does_not_exist(capsys):
    refuse(capsys, ["quantise"], 2, "quantise", "qvit --help")


def test_architecture_that_is_not_supported(capsys, tmp_path):
    out = tmp_path / "out"
    arguments = ["quantize", "swin_t", "--no-pretrained", "-o", out]
    refuse(capsys, arguments, 2, "swin", "deit")
    assert not out.exists()


def test_weights_that_cannot_be_downloaded(start_qvit, tmp_path):
    with start_qvit(["quantize", "deit_t", "-o", tmp_path / "out"]) as process:
        stdout, stderr = process.communicate()
    assert process.returncode == 3, stderr
    assert stdout == ""
    assert "--weights" in stderr
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


def test_device_that_is_missing(capsys, tiny_quantized, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    refuse(capsys, ["bench", tiny_quantized, "--device", "cuda"], 3, "qvit doctor")
    refuse(capsys, ["bench", tiny_quantized, "--backend", "triton"], 3, "triton")


def broken_weights(kind, tiny_model, path):
    state = load_file(tiny_model / "model.safetensors")
    if kind == "missing":
        return
    if kind == "truncated":
        path.write_bytes((tiny_model / "model.safetensors").read_bytes()[:-100])
        return
    if kind == "no safetensors":
        path.write_bytes(b"not a safetensors file at all")
        return
    if kind == "wrong shape":
        state["blocks.1.mlp.fc1.weight"] = state["blocks.1.mlp.fc1.weight"][:, :32].contiguous()
    if kind == "missing key":
        del state["blocks.1.attn.qkv.weight"]
    if kind == "nan":
        state["blocks.0.mlp.fc2.weight"][3, 4] = float("nan")
    save_file(state, path)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", ["weights.safetensors"]),
        ("truncated", ["weights.safetensors"]),
        ("no safetensors", ["weights.safetensors"]),
        ("wrong shape", ["blocks.1.mlp.fc1.weight", "256, 32", "256, 64"]),
        ("missing key", ["blocks.1.attn.qkv.weight"]),
        ("nan", ["blocks.0.mlp.fc2.weight"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_that_do_not_fit(capsys, tiny_model, tmp_path, kind, words):
    path = tmp_path / "weights.safetensors"
    broken_weights(kind, tiny_model, path)
    out = tmp_path / "out"
    refuse(capsys, ["quantize", tiny_model, "--weights", path, "-o", out], 4, *words)
    assert {entry.name for entry in tmp_path.iterdir()} <= {path.name}


class Exploit:
    def __reduce__(self):
        return os.getcwd, ()


def test_pickle_with_code_is_not_run(capsys, tiny_model, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": Exploit()}, path)
    refuse(
        capsys, ["quantize", tiny_model, "--weights", path, "-o", tmp_path / "out"], 4, str(path)
    )


def test_data_folder_that_is_missing_or_empty(capsys, tiny_quantized, tmp_path):
    missing = tmp_path / "missing"
    refuse(capsys, ["eval", tiny_quantized, "--data", missing], 4, str(missing))
    refuse(capsys, ["eval", tiny_quantized, "--data", tmp_path], 4, str(tmp_path))
    quantize = ["quantize", "demo_vit", "--w", "4", "-o", tmp_path / "out", "--calib-data"]
    refuse(capsys, [*quantize, missing], 4, str(missing))
    refuse(capsys, [*quantize, tmp_path], 4, str(tmp_path))


def test_class_map_that_does_not_match(capsys, tiny_quantized, tiny_images, tmp_path):
    arguments = ["eval", tiny_quantized, "--data", tiny_images, "--class-map"]
    names = tmp_path / "names.txt"
    refuse(capsys, [*arguments, names], 4, "names.txt")
    names.write_text("".join(f"class{label}\n" for label in range(4)))  # two folders are unknown
    refuse(capsys, [*arguments, names], 4, "class4", "names.txt")
    names.write_text("".join(f"class{label}\n" for label in (*range(6), *"abcdef")))
    names.write_text("".join(f"other{label}\n" for label in range(6)) + names.read_text())
    refuse(capsys, [*arguments, names], 4, "names.txt")  # indices beyond the model's six classes


def test_class_folders_that_are_not_the_models_classes(
    capsys, tiny_quantized, tiny_images, tmp_path
):
    """Five folders for six classes would number the classes wrongly and say nothing."""
    images = tmp_path / "images"
    shutil.copytree(tiny_images, images)
    shutil.rmtree(images / "class2")
    refuse(capsys, ["eval", tiny_quantized, "--data", images], 4, "--class-map")


def test_unreadable_images(capsys, tiny_copy, tiny_images, tmp_path):
    """One in 240 is skipped and counted; one in 30 is an error."""
    few, many = tmp_path / "few", tmp_path / "many"
    shutil.copytree(tiny_images, few)
    (few / "class3" / "2.png").write_bytes(b"this is no image")
    refuse(capsys, ["eval", few.parent / "nothing", "--data", few], 4)
    refuse(capsys, ["eval", tiny_copy, "--data", few], 4, "2.png", "1 of 30")
    shutil.copytree(tiny_images, many)
    for folder in sorted(many.iterdir()):
        for image in sorted(folder.iterdir()):
            for copy in range(7):
                shutil.copy(image, folder / f"{image.stem}-{copy}.png")
    broken = many / "class3" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    capsys.readouterr()
    assert run(["eval", str(tiny_copy), "--data", str(many), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["skipped"]) == (239, 1)


@pytest.mark.parametrize("verb", ["info", "eval", "bench"])
@pytest.mark.parametrize("kind", ["missing", "truncated", "no config", "broken config", "version"])
def test_folder_that_is_broken(capsys, tiny_quantized, tiny_images, tmp_path, verb, kind):
    folder = tmp_path / "folder"
    if kind != "missing":
        shutil.copytree(tiny_quantized, folder)
    config = folder / "config.json"
    if kind == "truncated":
        os.truncate(folder / "model.safetensors", 5000)
    if kind == "no config":
        config.unlink()
    if kind == "broken config":
        config.write_text(config.read_text()[:-40])
    if kind == "version":
        values = json.loads(config.read_text())
        values["quantization_config"]["format_version"] = 99
        config.write_text(json.dumps(values))
    rest = {"info": [], "eval": ["--data", tiny_images], "bench": ["--baseline", "none"]}[verb]
    refuse(capsys, [verb, folder, *rest], 4, str(folder))


def start_on_a_full_disk(start_qvit, arguments, room):
    """A process whose output folder, `room`, is a file system of 64 KiB that nobody else sees."""
    if sys.platform == "linux" and shutil.which("unshare"):
        mount = f"mount -t tmpfs -o size=64k none {room}"
        probe = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True)
        if probe.returncode == 0:
            program = [sys.executable, "-m", "qvit", *map(str, arguments)]
            script = f'{mount} && "$@"; code=$?; ls -A {room}; exit $code'
            return start_qvit(
                ["unshare", "-rm", "sh", "-c", script, "sh", *program], bare=True
            ), "full"
    # No file system of our own here: a limit on the size of files fails the same write.
    limit = (1 << 16, 1 << 16)
    process = start_qvit(
        arguments, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    )
    return process, "limit"


def test_full_disk(start_qvit, tmp_path):
    room = tmp_path / "room"
    room.mkdir()
    arguments = ["quantize", "deit_t", "--no-pretrained", "-o", room / "out"]
    started, word = start_on_a_full_disk(start_qvit, arguments, room)
    with started as process:
        stdout, stderr = process.communicate()
    assert process.returncode == 1, stderr
    assert stdout == ""  # no message, and no file left in the full room
    assert word in stderr
    assert "Traceback" not in stderr
    assert list(room.iterdir()) == []


def test_full_stdout(start_qvit):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full, start_qvit(["--help"], stdout=full) as process:
        _, stderr = process.communicate()
    assert process.returncode == 1
    assert "disk is full" in stderr
    assert "Traceback" not in stderr
    assert "Exception ignored" not in stderr


def test_interrupt(start_qvit, tmp_path):
    """Ctrl-C while the model is quantized."""
    out = tmp_path / "room" / "out"
    arguments = ["quantize", "deit_b", "--no-pretrained", "--w", "4", "--a", "4", "-o", out]
    with start_qvit(arguments) as process:
        assert process.stderr is not None
        first = process.stderr.readline()  # the resolved name: from here on it works
        assert "deit_base_patch16_224" in first
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "interrupted" in stderr
    assert f"qvit quantize deit_b --no-pretrained --w 4 --a 4 -o {out}" in stderr
    assert "Traceback" not in stderr
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == []


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (errors.QvitError("it broke"), 1, ["it broke"]),
        (errors.UsageError("it makes no sense"), 2, ["it makes no sense"]),
        (errors.RequirementError("it is missing"), 3, ["it is missing"]),
        (errors.InputError("it does not fit"), 4, ["it does not fit"]),
        (errors.GateError("too low"), 5, ["too low"]),
        (KeyboardInterrupt(), 130, ["interrupted", "qvit info 'a b'"]),
        (click.Abort(), 130, ["interrupted"]),
        (OSError(errno.ENOSPC, "No space left on device", "/there/x"), 1, ["disk is full", "-o"]),
        (OSError(errno.EDQUOT, "Quota exceeded", "x"), 1, ["disk is full"]),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 1, ["disk is full"]),
        (OSError(errno.EFBIG, "File too large"), 1, ["ulimit"]),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, ["Permission denied (/x)"]),
        (MemoryError("4 GiB"), 1, ["out of memory"]),
        (ZeroDivisionError("division by zero"), 1, ["ZeroDivisionError", "qvit doctor", "-v"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_exit_codes(capsys, error, code, words):
    assert report_failure(error, ["info", "a b"], verbose=False) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("qvit: ")
    for word in words:
        assert word in err


def test_verbose_shows_the_traceback(capsys):
    try:
        raise ZeroDivisionError("division by zero")
    except ZeroDivisionError as error:
        report_failure(error, [], verbose=True)
    assert "Traceback" in capsys.readouterr().err


def test_wrapped_full_disk(capsys):
    """A library's own error in front of the operating system's does not hide it."""
    wrapped = errors.InputError("could not write")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device", "x")
    assert report_failure(wrapped, [], verbose=False) == 1
    assert "disk is full" in capsys.readouterr().err
