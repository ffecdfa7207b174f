"""The compiled half of the `cpu` backend: C++ in `vnni/`, built with the compiler that torch.compile uses.

Built when `load` is first called on a machine, in about three seconds, and kept in the user's cache; never on import,
and never by an op. The source includes no header of torch and is called through ctypes, so any compiler does.

Why not Inductor: on one Zen 5 core fc1 of DeiT-S, one image, takes 706 us as oneDNN's product and the loops that
Inductor makes of rescaling, GELU and quantization, of which the product is 242 us.
"""

import ctypes
import functools
import hashlib
import os
import platform
import stat
import subprocess
import tempfile
import threading
from pathlib import Path

SOURCES = Path(__file__).parent / "vnni"

# No contraction: a product and a sum are two rounded operations. The other two let rounding be vectorized, and change
# no result.
FLAGS = (
    "-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-w",
    "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip


class CompiledLibraryError(RuntimeError):
    """There is no compiled path on this machine; the message says why."""


class _NoCacheError(CompiledLibraryError):
    """Libraries cannot be kept where they would be."""


class _State:
    library: ctypes.CDLL | None = None
    lock = threading.Lock()


def loaded() -> ctypes.CDLL | None:
    """The library, if `load` was called in this process and did not fail."""
    return _State.library


def load(compiler: str | None, cache: Path | None = None) -> ctypes.CDLL:
    """Build the library, or take it from the cache, and load it; from then on the `cpu` backend uses it.

    Args:
        compiler: Path of a C++ compiler, or None if there is none.
        cache: Folder of built libraries; None: `qvit` in the user's cache. Where it cannot be written, or others may
            write to it (whatever lies there is run), the library is built for this process alone.

    Raises CompiledLibraryError where there is no compiler, no AVX512-VNNI, or the build fails.
    """
    with _State.lock:
        if _State.library is None:
            if "avx512_vnni" not in _cpu_flags():
                raise CompiledLibraryError(
                    "it is written for AVX512-VNNI, which this processor lacks"
                )
            if compiler is None:
                raise CompiledLibraryError(
                    "it needs a C++ compiler (CXX, c++, g++ or clang++), and none was found"
                )
            _State.library = _opened(compiler, cache)
        return _State.library


@functools.cache
def fingerprint() -> str:
    """Of the source: another version may take another time."""
    digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in _source_files()))
    return digest.hexdigest()[:8]


def unload() -> None:
    """Compute without the library again: for comparisons."""
    _State.library = None


def _opened(compiler: str, cache: Path | None) -> ctypes.CDLL:
    try:
        return _open(_built(compiler, cache or _cache_folder()))
    except _NoCacheError:
        try:
            with tempfile.TemporaryDirectory(prefix="qvit-") as folder:
                return _open(
                    _built(compiler, Path(folder))
                )  # what is loaded needs its file no more
        except OSError as error:
            raise CompiledLibraryError(f"there is nowhere to build it: {error}") from error


def _built(compiler: str, cache: Path) -> Path:
    _require_own(cache)
    files = _source_files()
    version = _run(compiler, "--version").stdout.encode()
    parts = [version, " ".join(FLAGS).encode(), _cpu_flags().encode()]
    digest = hashlib.sha256(b"\0".join(parts + [file.read_bytes() for file in files])).hexdigest()
    target = cache / f"vnni-{digest[:20]}.so"
    if target.exists():
        return target
    try:
        handle, name = tempfile.mkstemp(suffix=".so", dir=cache)
    except OSError as error:
        raise _NoCacheError(f"its cache, {cache}, cannot be written: {error}") from error
    os.close(handle)
    made = Path(name)
    try:
        done = _run(compiler, *FLAGS, "-o", name, str(SOURCES / "program.cpp"))
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
            raise CompiledLibraryError(f"{compiler} failed: {lines[0]}")
        made.replace(target)  # at once: another process may look for it now
    finally:
        made.unlink(missing_ok=True)
    return target


def _source_files() -> list[Path]:
    return sorted(file for file in SOURCES.iterdir() if file.suffix in (".cpp", ".h"))


def _require_own(cache: Path) -> None:
    """_NoCacheError unless the folder is there and nobody but its user (or root) writes to it."""
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = cache.stat()
    except OSError as error:
        raise _NoCacheError(f"its cache, {cache}, cannot be made: {error}") from error
    if facts.st_uid not in (0, os.getuid()) or facts.st_mode & stat.S_IWOTH:
        raise _NoCacheError(f"its cache, {cache}, is open to other users")


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise CompiledLibraryError(f"{command[0]} cannot be run: {error}") from error


def _open(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise CompiledLibraryError(f"{path} cannot be loaded: {error}") from error
    whole, pointer = ctypes.c_int64, ctypes.c_void_p
    library.qvit_size_of_step.restype = whole
    library.qvit_run.argtypes = [pointer, whole, whole, whole, pointer]
    library.qvit_run.restype = None
    library.qvit_pack_weight.argtypes = [pointer, whole, whole, whole, pointer, pointer]
    library.qvit_pack_weight.restype = None
    return library


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "qvit"
    except RuntimeError as error:  # a user without a name, as in some containers
        raise _NoCacheError(f"there is no folder for its cache: {error}") from error


def _cpu_flags() -> str:
    """What `-march=native` goes by: a cache may be shared by machines."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags")
    return "\n".join(line for line in text.split("\n\n")[0].splitlines() if line.startswith(wanted))
