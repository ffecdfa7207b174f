"""Fixtures for every test: poisoned memory, fixed seeds, the shared folder, a way to run the
program.
"""

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Before anything imports huggingface_hub, which reads it once: a test that reaches for the network
# by mistake fails at once, on every machine alike. tests/hub.py serves what tests download.
os.environ["HF_HUB_OFFLINE"] = "1"
# Before anything imports torch. The tests' tensors are tiny: two threads spend their time waiting
# for each other (the suite took 475 s with two and 159 s with one, on two cores with other work).
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before anything imports triton: its kernels then run in the interpreter, on CPU tensors. What they compile to
# is looked at in processes of their own.
os.environ.setdefault("TRITON_INTERPRET", "1")

# A deadline would measure the machine; fixed examples make a red run red again.
settings.register_profile("house", deadline=None, derandomize=True, database=None)
settings.load_profile("house")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanting = [item for item in items if item.get_closest_marker("cuda")]
    if not wanting:
        return
    import torch

    if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
        return
    for item in wanting:
        item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU of capability 8.0 or newer"))


def allocators() -> list[tuple[Any, str]]:
    """Where torch makes memory whose contents are undefined."""
    import torch

    return [
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
    ]


@pytest.fixture(scope="session", autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fresh memory holds NaN and 0x55 instead of whatever lay there, so that a value never written
    shows.

    Without it such a fault passes on a machine whose allocator hands out zeros.
    """
    import torch

    with torch.device("cpu"):  # torch lists its constructors at the first use of a device context:
        torch.empty(0)  # before the patch, or `with torch.device("meta")` would no longer see them
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in allocators():
            patch.setattr(owner, name, _poisoning(getattr(owner, name)))
        yield


def _poisoning(allocate: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    @functools.wraps(allocate)
    def allocate_poisoned(*args: Any, **kwargs: Any) -> Any:
        tensor = allocate(*args, **kwargs)
        if torch.compiler.is_compiling() or tensor.is_meta or tensor.is_quantized:
            return tensor
        with torch.no_grad():
            if tensor.is_floating_point() or tensor.is_complex():
                tensor.fill_(float("nan"))
            elif tensor.dtype == torch.bool:
                tensor.fill_(True)
            else:
                tensor.fill_(int.from_bytes(b"\x55" * tensor.element_size(), sys.byteorder))
        return tensor

    return allocate_poisoned


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Every test starts from the same random state, whichever ran before it."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - timm and torchvision draw from the global state
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def compiled_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this session keeps the compiled CPU path."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def compiled_path(compiled_cache: Path) -> Iterator[None]:
    """The `cpu` backend with its compiled path; skipped on a machine that has none."""
    from qvit import machine
    from qvit_kernels import compiled_library

    try:
        compiled_library.load(machine.find_compiler(), compiled_cache)
    except compiled_library.CompiledLibraryError as error:
        pytest.skip(str(error))
    yield
    compiled_library.unload()


@pytest.fixture(autouse=True)
def without_compiled_path() -> Iterator[None]:
    """A test that warms a model up leaves nothing to the next one."""
    yield
    if library := sys.modules.get("qvit_kernels.compiled_library"):
        library.unload()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real weights and images beside the project; the test is skipped where it is
    absent.
    """
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (real weights and images), which is not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def child_environment() -> dict[str, str]:
    """The environment of a child process that finds the packages in the tree and never reaches the
    network.
    """
    paths = [str(ROOT), str(ROOT / "kernels")]
    if inherited := os.environ.get("PYTHONPATH"):
        paths.append(inherited)
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
    }


@pytest.fixture(scope="session")
def start_qvit(
    child_environment: dict[str, str],
) -> Callable[..., subprocess.Popen[str]]:
    """Start the real program in a process of its own; `bare`: start another one that starts it."""

    def start(
        arguments: Sequence[object], *, bare: bool = False, **settings: Any
    ) -> subprocess.Popen[str]:
        settings = {
            "env": child_environment,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            # a suite that runs in the background of a shell has SIGINT ignored, and would hand that down
            "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        } | settings
        program = [] if bare else [sys.executable, "-m", "qvit"]
        return subprocess.Popen([*program, *map(str, arguments)], **settings)

    return start


TINY_CLASSES = 6
TINY_SIZE = 32


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-block Vision Transformer with random weights, as a folder in timm's format."""
    import timm
    import torch
    from safetensors.torch import save_file

    arguments: dict[str, Any] = {
        "img_size": TINY_SIZE,
        "patch_size": 8,
        "embed_dim": 64,
        "depth": 2,
        "num_heads": 2,
    }
    torch.manual_seed(3)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=TINY_CLASSES, **arguments)
    # timm starts biases and the class token at zero: here every parameter matters
    state = {name: w + torch.randn_like(w) * 0.05 for name, w in model.state_dict().items()}
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": TINY_CLASSES,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, TINY_SIZE, TINY_SIZE],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "num_classes": TINY_CLASSES,
            "license": "apache-2.0",
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    folder = tmp_path_factory.mktemp("float") / "tiny"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five noise images in each of six class folders."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for label in range(TINY_CLASSES):
        (folder / f"class{label}").mkdir()
        for index in range(5):
            pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_quantized(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tiny model at W4A4, as `qvit quantize` writes it: for reading (`tiny_copy` is for writing)."""
    from qvit.cli import run

    folder = tmp_path_factory.mktemp("quantized") / "tiny-w4a4"
    assert run(["quantize", str(tiny_model), "--w", "4", "--a", "4", "-o", str(folder), "-q"]) == 0
    written = {path.name for path in folder.iterdir()}
    yield folder
    assert {path.name for path in folder.iterdir()} == written, "a test kept a result in it"


@pytest.fixture
def tiny_copy(tiny_quantized: Path, tmp_path: Path) -> Path:
    """A copy of the W4A4 folder, in which verbs may keep their results."""
    return shutil.copytree(tiny_quantized, tmp_path / tiny_quantized.name)
