"""While images are made from weights alone, no image can be read: the process itself refuses.

An audit hook sees every file that Python opens, whatever library asks for it, and every child process that could open
one in its stead. Native readers that Python does not see (torchvision.io, torch.from_file, torch.jit.load, and that of
safetensors) are closed in torch's own dispatcher and in bindings. Beyond its reach are other libraries whose native
code opens files by itself, and files that were open before: the guard makes an accident or a shortcut impossible, it is
no sandbox against compiled malice.
"""

import _posixsubprocess
import os
import re
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from qvit.errors import QvitError

_CODE = (".py", ".pyc", ".so", ".pyd", ".dylib", ".dll")
# What reading files of the system is about: processors, time zones, terminals, random numbers.
_SYSTEM = (
    "/proc/",
    "/sys/",
    "/dev/null",
    "/dev/urandom",
    "/dev/random",
    "/dev/tty",
    "/dev/pts/",
    "/etc/",
)
_TEXTS = "/usr/share/zoneinfo/", "/usr/share/terminfo/", "/usr/share/locale/", "/usr/lib/locale/"
_CHILDREN = {
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty",
    "pty.spawn", "os.startfile",
}  # fmt: skip
_ELSEWHERE = {"socket.connect", "socket.sendto", "urllib.Request", "sqlite3.connect"}
_LOOK_UPS = {"ctypes.dlsym", "ctypes.dlsym/handle"}
_NATIVE_NAMES = re.compile(
    r"^_*((f|fre|fd)?open(at)?2?(64)?|mmap(64)?|syscall|system|popen|exec[lv]p?e?|posix_spawnp?|v?fork|dlv?m?sym)$"
)
# An int such as torchvision's reader takes no tensor: BackendSelect is where torch finds a kernel for it.
_NATIVE_READERS = (("image", "read_file", "BackendSelect"), ("aten", "from_file", "CPU"))
# Bindings that read a file, or start a process (multiprocessing's "spawn"), and tell no audit hook.
_BINDINGS = (
    (torch.UntypedStorage, "from_file"),
    (torch._C, "PyTorchFileReader"),
    (torch._C, "import_ir_module"),
    (_posixsubprocess, "fork_exec"),
    (safe_open, "__init__"),  # of the class: who kept its name from before is refused, too
)

_lock = threading.Lock()  # blocks may begin and end in several threads
_closed = ExitStack()  # opens the native readers again
_allowed: list[tuple[str, ...]] = []  # one entry for each guard that is in force
_installed = False


class PrivacyError(QvitError):
    """Something tried to read data while images were made from weights alone."""


@contextmanager
def no_images_read(*folders: Path) -> Iterator[None]:
    """Refuse to open anything but code, system files and these folders, in the whole process, during the block.

    Every thread is held to it: a program that reads images in another thread has to wait. Raises PrivacyError at
    the place that tried.

    Args:
        folders: The run's own, which may be read and written.
    """
    import torchvision  # noqa: F401 - brings its native reader, which could otherwise arrive during the block

    entry = tuple(os.path.realpath(folder) + os.sep for folder in folders)
    with _lock:
        if not _allowed:
            _close_native_readers()
        _allowed.append(entry)
    try:
        yield
    finally:
        with _lock:
            _allowed.remove(entry)
            if not _allowed:  # the last block, whichever began first
                _closed.close()


def _close_native_readers() -> None:
    """Until `_closed` is closed; and listen to what Python opens, for good."""
    global _installed
    if not _installed:
        # Python has no way to take one away; it rests outside of blocks.
        sys.addaudithook(_audit)
        _installed = True
    for reader in _NATIVE_READERS:
        library = _close(*reader)
        if library is not None:
            _closed.callback(library._destroy)
    for owner, name in _BINDINGS:
        binding = vars(owner).get(name)
        if binding is None:  # it is inherited
            _closed.callback(delattr, owner, name)
        else:
            _closed.callback(setattr, owner, name, binding)
        setattr(owner, name, staticmethod(_refuse_native))


def _close(namespace: str, name: str, key: str) -> torch.library.Library | None:
    """Put a refusal in the place of a native reader; None where torch has no such operation."""
    if not hasattr(getattr(torch.ops, namespace), name):
        return None
    library = torch.library.Library(namespace, "IMPL")  # taken back when the block ends
    library.impl(name, _refuse_native, key)
    return library


def _refuse_native(*_: Any, **__: Any) -> Any:
    raise _refusal("a file, in native code")


def _refusal(what: str) -> PrivacyError:
    return PrivacyError(
        f"refused: {what}. Images are being made from weights alone, and until they are finished this process "
        "reads no data; read it before or afterwards"
    )


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _allowed:
        return
    if event == "open":
        path, mode, flags = arguments
        if not _only_writes(mode, flags) and not _may_read(path):
            raise _refusal(f"opening {path!r}")
    elif event == "os.link" or (event == "os.rename" and not _may_read(arguments[0])):
        raise _refusal(f"moving {arguments[0]!r} to where it could be read")
    elif event == "mmap.__new__":
        if arguments[0] >= 0 and not _may_read(arguments[0]):
            raise _refusal("mapping a file into memory")
    elif event in _CHILDREN:
        raise _refusal(f"starting another process ({event})")
    elif event in _ELSEWHERE:
        raise _refusal(f"reaching for data elsewhere ({event})")
    elif event in _LOOK_UPS and _NATIVE_NAMES.match(str(arguments[1])):
        raise _refusal(f"calling {arguments[1]} of a native library")
    elif event == "qvit.open_images":
        raise _refusal(f"the images {arguments[0]!r}")


def _only_writes(mode: Any, flags: Any) -> bool:
    if isinstance(flags, int):
        new = flags & os.O_TRUNC or flags & (os.O_CREAT | os.O_EXCL) == os.O_CREAT | os.O_EXCL
        access = flags & (os.O_RDWR | os.O_WRONLY)
        return access == os.O_WRONLY or (access == os.O_RDWR and bool(new))
    return isinstance(mode, str) and "+" not in mode and "r" not in mode


def _may_read(path: Any) -> bool:
    """Whether a path or an open descriptor is code, the system's, or of the run itself."""
    if isinstance(path, int):
        try:
            path = os.readlink(f"/proc/self/fd/{path}")
        except OSError:
            return False
        if not path.startswith("/"):  # a pipe or a socket
            return True
    real = os.path.realpath(os.fsdecode(path))
    if os.path.isdir(real):  # what is opened relative to it could not be told from what is allowed
        return False
    if real.startswith(_SYSTEM + _TEXTS) or any(real.startswith(entry) for entry in _allowed):
        return True
    return real.endswith(_CODE) and real.startswith(_code_folders())


def _code_folders() -> tuple[str, ...]:
    """Where Python finds modules; files with the endings of code are read there, and only those."""
    roots = [*sys.path, sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()]
    return tuple(os.path.join(os.path.realpath(root), "") for root in dict.fromkeys(roots))
