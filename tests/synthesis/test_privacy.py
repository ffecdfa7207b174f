"""While images are made from weights alone, every way to an image that we could think of is refused."""

import ctypes
import io
import mmap
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from qvit.data import DataConfig, open_images
from qvit.synthesis import privacy
from qvit.synthesis.privacy import PrivacyError, no_images_read
from tests.conftest import ROOT


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "outside" / "picture.png"
    path.parent.mkdir()
    Image.new("RGB", (8, 8), "red").save(path)
    np.save(path.with_suffix(".npy"), np.arange(9))
    save_file({"pixels": np.arange(9)}, path.with_suffix(".safetensors"))
    (path.parent / "text.txt").write_text("no image, and data all the same")
    return path


def read_in_torchvision(path):
    import warnings

    import torchvision.io

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the readers as such, since 0.29
        return torchvision.io.read_file(str(path))


def decode_in_torchvision(path):
    import warnings

    import torchvision.io

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torchvision.io.decode_image(str(path))


def open_descriptor(path):
    os.close(os.open(path, os.O_RDONLY))


def open_relative(path):
    folder = os.open(path.parent, os.O_RDONLY)
    os.open(path.name, os.O_RDONLY, dir_fd=folder)


def through_proc(path):
    Path(f"/proc/self/root{path}").read_bytes()


def through_a_link(path):
    link = path.with_name("innocent.py")
    link.symlink_to(path)
    link.read_bytes()


def libc_open(path):
    ctypes.CDLL(None).open(os.fsencode(path), os.O_RDONLY)


def libc_open_by_its_handle(path):
    import _ctypes

    _ctypes.dlsym(_ctypes.dlopen(None, 0), "fopen")


def through_a_second_name(path):
    os.link(path, path.parent.parent / "run" / "mine")


def through_the_runs_folder(path):
    path.rename(path.parent.parent / "run" / "mine")


def relative_to_a_system_folder(path):
    folder = os.open("/proc/self/", os.O_RDONLY)
    os.open(f"root{path}", os.O_RDONLY, dir_fd=folder)


def load_script(path):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.load(str(path))


def spawn(_):
    import multiprocessing

    multiprocessing.get_context("spawn").Process(target=print).start()


def connect(_):
    with socket.socket() as caller:
        caller.connect(("localhost", 9))


CHEATS = {
    "open": lambda p: open(p, "rb").close(),
    "open to read and write": lambda p: open(p, "r+b").close(),
    "open to append and read": lambda p: open(p, "a+b").close(),
    "io.open": lambda p: io.open(p, "rb").close(),  # noqa: UP020
    "io.FileIO": lambda p: io.FileIO(p).close(),
    "Path.read_bytes": lambda p: p.read_bytes(),
    "os.open": open_descriptor,
    "os.open beside a folder": open_relative,
    "PIL": lambda p: Image.open(p).close(),
    "numpy.load": lambda p: np.load(p.with_suffix(".npy")),
    "numpy.fromfile": lambda p: np.fromfile(p, dtype=np.uint8),
    "numpy.memmap": lambda p: np.memmap(p, mode="r"),
    "text": lambda p: (p.parent / "text.txt").read_text(),
    "torch.load": lambda p: torch.load(p),
    "torch.from_file": lambda p: torch.from_file(str(p), size=9, dtype=torch.uint8),
    "torch storage": lambda p: torch.UntypedStorage.from_file(str(p), False, 9),
    "torchvision.io.read_file": read_in_torchvision,
    "torchvision.io.decode_image": decode_in_torchvision,
    "an operator kept from before": lambda p: torch.ops.image.read_file(str(p)),
    "a child process": lambda p: subprocess.run(["cat", str(p)], check=True, capture_output=True),
    "a shell": lambda p: os.system(f"cat {p} > {os.devnull}"),
    "a fork": lambda p: os._exit(0) if os.fork() == 0 else None,
    "a spawned process": lambda p: os.posix_spawn("/bin/cat", ["cat", str(p)], {}),
    "/proc": through_proc,
    "a link": through_a_link,
    "libc": libc_open,
    "libc, reopened": lambda p: ctypes.CDLL(None).freopen,
    "libc by its handle": libc_open_by_its_handle,
    "a second name": through_a_second_name,
    "a new name": through_the_runs_folder,
    "a system folder": relative_to_a_system_folder,
    "multiprocessing": spawn,
    "torch.jit.load": load_script,
    "safetensors": lambda p: load_file(p.with_suffix(".safetensors")),
    "safetensors, kept from before": lambda p: safe_open(p.with_suffix(".safetensors"), "np"),
    "torch's own reader": lambda p: torch._C.PyTorchFileReader(str(p)),
    "a socket": connect,
    "urllib": lambda p: urllib.request.urlopen(p.as_uri()),
    "a data set that opens no file": lambda p: open_images(
        "demo:5", DataConfig(input_size=(3, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3)
    ),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_images_cannot_be_read(cheat, picture, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with no_images_read(run), pytest.raises(PrivacyError, match="from weights alone"):
        CHEATS[cheat](picture)


def test_what_was_open_before_cannot_be_mapped(picture):
    with picture.open("rb") as file, no_images_read():
        with pytest.raises(PrivacyError, match="mapping"):
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with pytest.raises(PrivacyError, match="opening"):
            open(file.fileno(), "rb", closefd=False)  # noqa: SIM115 - it does not open


def test_everything_works_before_and_after(picture, tmp_path):
    for _ in range(2):
        with no_images_read(tmp_path / "run"):
            pass
        for name in (
            "open", "PIL", "numpy.load", "torch.from_file", "torchvision.io.read_file", "safetensors",
            "safetensors, kept from before",
        ):  # fmt: skip
            CHEATS[name](picture)
        CHEATS["a child process"](picture)
        assert privacy._allowed == []


def test_the_guard_ends_with_an_error_too(picture, tmp_path):
    with pytest.raises(ValueError, match="inside"), no_images_read(tmp_path):
        raise ValueError("inside")
    picture.read_bytes()


def refused(names, picture):
    """Which of the ways to a file are closed."""
    found = []
    for name in names:
        try:
            CHEATS[name](picture)
        except PrivacyError:
            found.append(name)
    return found


def test_runs_in_two_threads_are_guarded_to_the_end_of_the_last(picture):
    """Whichever began first: its end does not open the readers, and the other's does not leave them closed."""
    ways = ["open", "torch.from_file", "torch storage", "torchvision.io.read_file", "safetensors"]
    first, second = no_images_read(), no_images_read()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    during = refused(ways, picture)
    second.__exit__(None, None, None)
    assert during == ways
    assert refused([*ways, "a child process"], picture) == []


def test_the_run_itself_works_under_it(tmp_path):
    """Code is imported, the run's own folder written and read, system files read, new files made."""
    with no_images_read(tmp_path / "run"):
        sys.modules.pop("colorsys", None)
        import colorsys

        assert colorsys.rgb_to_hsv(0, 0, 0) == (0, 0, 0)
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "shard").write_bytes(b"1")
        assert (tmp_path / "run" / "shard").read_bytes() == b"1"
        Path("/proc/self/status").read_text()
        os.urandom(4)
        (tmp_path / "new").write_bytes(b"2")
        torch.optim.AdamW([torch.zeros(2, requires_grad=True)]).step()


def test_nothing_named_like_the_folder_is_in_it(tmp_path):
    (tmp_path / "run").mkdir()
    beside = tmp_path / "run-images"
    beside.mkdir()
    (beside / "a.bin").write_bytes(b"1")
    with no_images_read(tmp_path / "run"), pytest.raises(PrivacyError):
        (beside / "a.bin").read_bytes()


def test_data_beside_code_is_no_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("weights.bin", "images.pth"):
        (tmp_path / name).write_bytes(b"1")
        with no_images_read(), pytest.raises(PrivacyError):
            (tmp_path / name).read_bytes()
    assert ROOT.is_dir()
