"""Memory, loading and the first call of a variant, each in a process of its own.

First calls find what compilers have cached on the disk, as in every process but the first on a machine: compiling each
variant anew for each batch size would take a minute a row.

A peak counts from before the model is loaded to after a few calls, of a process in which torch is there already. It is
VmHWM less VmRSS of /proc: getrusage's ru_maxrss would count what a parent once had. Processes are forked from one that
has imported everything and computed nothing, so that each begins alike and none waits for an import.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

_FIELDS: tuple[str, ...] = ("peak_mem_mb", "load_s", "first_call_s")
_LIMIT = 600  # seconds that one variant may take
_CALLS = 3  # after the first


class Nursery:
    """A process that forks one for every variant. Where there is no fork or no /proc, everything is None."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        if hasattr(os, "fork") and Path("/proc/self/status").exists():
            paths = os.pathsep.join(path for path in sys.path if path)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "qvit.latency.footprint"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | {"PYTHONPATH": paths},
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(OSError), self._process:
                pass  # its exit closes both pipes and waits

    def measure(self, job: dict[str, Any]) -> tuple[dict[str, float | None], str | None]:
        """`peak_mem_mb`, `load_s` and `first_call_s` of a job, None for what could not be measured; and why not, where
        something went wrong.
        """
        nothing: dict[str, float | None] = dict.fromkeys(_FIELDS)
        if self._process is None:
            return nothing, None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError as error:
            return nothing, f"its process is gone ({error.strerror})"
        found: dict[str, Any] = json.loads(line) if line else {"error": "its process is gone"}
        failure = found.pop("error", None)
        return nothing | found, failure


def take(job: dict[str, Any]) -> dict[str, Any]:
    """Load a variant, call it, and say what that took; for a process that has done nothing else."""
    import torch

    torch.set_num_threads(job["threads"])
    torch.set_grad_enabled(False)
    device, batch = job["device"], job["batch"]
    if device.startswith("cuda"):
        torch.cuda.set_device(torch.device(device).index or 0)
    size = _subject(job).source.pretrained_cfg["input_size"]
    images = torch.randn(batch, *size, device=device)
    # what torch itself takes at its first product
    torch.nn.functional.gelu(torch.randn(4, 4, device=device) @ torch.randn(4, 4, device=device))
    measure_peak = _watch_device(device) if device.startswith("cuda") else _watch_process()
    start = time.perf_counter()
    run, from_disk = _load(job, images)
    loaded = time.perf_counter()
    run()
    _wait(device)
    answered = time.perf_counter()
    for _ in range(_CALLS):
        run()
    _wait(device)
    return {
        "peak_mem_mb": measure_peak() / 1e6,
        "load_s": loaded - start if from_disk else None,
        "first_call_s": answered - loaded,
    }


def _subject(job: dict[str, Any]) -> Any:
    from qvit.latency.request import Subject

    return Subject.from_dict(job["subject"])


def _load(job: dict[str, Any], images: Any) -> tuple[Callable[[], object], bool]:
    """A pass over images, and whether the weights came from the disk: random ones say nothing of loading."""
    from qvit.latency.floats import FloatModels
    from qvit.latency.variants import VARIANTS

    subject, name = _subject(job), job["variant"]
    if name in VARIANTS:
        floats = FloatModels(subject.source, job["device"], job["seed"], Path(job["work"]))
        runner = VARIANTS[name].build(floats, images)
        return runner.bind(images), subject.weights is not None
    from qvit.deployment import QuantViT

    backend = name.rpartition("-")[2]
    model = QuantViT.from_pretrained(subject.folder, device=job["device"], backend=backend)
    ready: list[bool] = []

    def run() -> object:
        if not ready:  # the first answer pays for the warm-up
            model.warmup((len(images),))
            ready.append(True)
        return model(images)

    return run, True


def _watch_process() -> Callable[[], int]:
    """From now on: by how many bytes this process was larger than it is now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here, and not in the parent
    before = _memory("VmRSS")
    return lambda: max(0, _memory("VmHWM") - before)


def _memory(name: str) -> int:
    with Path("/proc/self/status").open() as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith(f"{name}:"))


def _watch_device(device: str) -> Callable[[], int]:
    import torch

    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    return lambda: torch.cuda.max_memory_allocated(device) - before


def _wait(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _serve() -> None:
    """Read jobs from stdin, a line each, and answer on stdout in as many lines."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # compilers and libraries print
    for module in ("timm", "qvit.deployment", "qvit.latency.variants", "qvit.latency.request"):
        __import__(module)
    for line in sys.stdin:
        answers.write(json.dumps(_fork(json.loads(line))) + "\n")
        answers.flush()


def _fork(job: dict[str, Any]) -> dict[str, Any]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            found: dict[str, Any] = take(job)
        except BaseException as error:  # noqa: BLE001 - a child may not go on as a second parent
            first_line = (str(error).splitlines() or [""])[0]
            found = {"error": f"{type(error).__name__}: {first_line}"}
        os.write(write, json.dumps(found).encode())
        os._exit(0)
    os.close(write)
    try:
        return _read(read, child)
    finally:
        os.close(read)
        os.waitpid(child, 0)


def _read(pipe: int, child: int) -> dict[str, Any]:
    parts = b"".join(_parts(pipe, child))
    try:
        return json.loads(parts)
    except ValueError:
        return {"error": f"it died, as for want of memory, or took longer than {_LIMIT} s"}


def _parts(pipe: int, child: int) -> Iterator[bytes]:
    while select.select([pipe], [], [], _LIMIT)[0]:
        part = os.read(pipe, 65536)
        if not part:
            return
        yield part
    os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    _serve()
