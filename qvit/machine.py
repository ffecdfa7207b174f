"""What this machine is: the facts that a time or a bug report means nothing without."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "torchvision",
    "triton",
    "timm",
    "numpy",
    "safetensors",
    "huggingface_hub",
    "click",
    "tqdm",
    "PyYAML",
    "Jinja2",
)
# The instruction sets that decide which int8 and bf16 kernels oneDNN can choose.
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
ARM_FLAGS = ("asimddp", "i8mm", "bf16", "sve")


def package_versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str | None]:
    """Installed versions by distribution name, read without importing anything; None where one is
    missing.
    """
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def describe_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """The processor: `name`, `cores` this process may use, and `features` that matter to int8 and
    bf16.
    """
    name, flags = platform.processor() or platform.machine(), set[str]()
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []  # not Linux: the platform's own name has to do
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags.update(value.split())
    return {
        "name": name,
        "cores": usable_cores(),
        "features": [flag for flag in CPU_FLAGS + ARM_FLAGS if flag in flags],
    }


def usable_cores() -> int:
    """Cores that this process may use; fewer than there are under taskset or in a container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def find_compiler() -> str | None:
    """Path of the C++ compiler that torch.compile would use on a CPU, or None."""
    chosen = os.environ.get("CXX")
    candidates = [chosen] if chosen else ["c++", "g++", "clang++"]
    return next((path for name in candidates if (path := shutil.which(name))), None)


def memory_bytes() -> int | None:
    """Main memory in bytes, None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def usable_memory(
    groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int | None:
    """Main memory that this process may use, in bytes: less than there is in a container or under a batch system,
    which end a process that takes more without a word.
    """
    limits = [memory_bytes()]
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []  # not Linux
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds == "":
            top, name = groups, "memory.max"
        elif "memory" in kinds.split(","):
            top, name = groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        # Every group above has its say, too; in a container the path may be that of the host, and the top is ours.
        inner = Path(path.lstrip("/"))
        limits += [_read_limit(top / part / name) for part in (inner, *inner.parents)]
    known = [limit for limit in limits if limit is not None]
    return min(known, default=None)


def release_memory() -> None:
    """Give memory that was freed back to the system now: glibc's allocator keeps it, for as large pieces as it has once
    seen. Takes less than a millisecond, more where there is much to give; other allocators are left alone.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _read_limit(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None


def describe_gpus() -> list[dict[str, Any]]:
    """The CUDA devices that torch sees: `name`, `capability` ("9.0"), `memory_bytes`. Imports
    torch.
    """
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
            }
        )
    return found


def describe_machine() -> dict[str, Any]:
    """The `machine` object of a benchmark: what the times below it were taken on. Imports torch."""
    import torch

    cpu = describe_cpu()
    gpus = describe_gpus()
    return {
        "cpu": cpu["name"],
        "cores": cpu["cores"],
        "threads": torch.get_num_threads(),
        "cpu_features": cpu["features"],
        "memory_bytes": memory_bytes(),
        "gpu": gpus[0]["name"] if gpus else None,
        "cuda": torch.version.cuda if gpus else None,
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


# What is said of a card, and what the driver calls it.
_CARD = {
    "name": "name",
    "sm": "compute_cap",
    "mem": "memory.total",
    "clock_sm": "clocks.sm",
    "clock_mem": "clocks.mem",
    "power_limit": "power.limit",
    "persistence": "persistence_mode",
    "ecc": "ecc.mode.current",
    "driver": "driver_version",
}


def describe_card(index: int = 0) -> dict[str, str] | None:
    """What the driver says of a card, in its own words: name, compute capability, memory, clocks, power limit,
    persistence, error correction, and its own version; None without a driver.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(_CARD.values())}", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            [*command, "-i", str(index)], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = [value.strip() for value in done.stdout.split(",")]
    return dict(zip(_CARD, values, strict=True)) if len(values) == len(_CARD) else None


def source_commit() -> str | None:
    """The commit of the checkout that this program runs from, with "-dirty" where files differ from it; None for an
    installed package, or without git.
    """
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():  # site-packages may lie in a checkout of something else
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def name_machine() -> str:
    """A file name for this machine: its processor and cores, and whether an x86 one lacks VNNI, on which int8
    depends more than on its name.
    """
    cpu = describe_cpu()
    words = "".join(c if c.isalnum() else " " for c in cpu["name"].lower()).split()
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    vnni = any("vnni" in feature or "amx_int8" in feature for feature in cpu["features"])
    return "-".join(
        [*words, f"{cpu['cores']}-cores", *(["without-vnni"] if x86 and not vnni else [])]
    )


def name_device(device: str) -> str:
    """A file name for what times depend on: this machine, a card or a number of threads, and torch's version."""
    import torch

    name = f"{torch.get_num_threads()}-threads"
    if not device.startswith("cpu"):
        name = _slug(torch.cuda.get_device_name(device))
    return f"{name_machine()}-{name}-torch-{torch.__version__.partition('+')[0]}"


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def cache_folder() -> Path | None:
    """Where this user's programs keep what can be made again; None for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "qvit"
    except RuntimeError:
        return None
