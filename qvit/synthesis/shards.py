"""The folder of a run: shards that appear whole, a manifest, and a fingerprint that refuses another run's folder.

manifest.json              what was run, and when complete, the sha256 of every shard
shards/000000.safetensors  images float16 [B, C, H, W] normalised, labels int64 [B] or float32 [B, classes]
logs/000000.jsonl          the losses and measures of one batch
log.jsonl                  all of them in order, once the run is complete
generator.safetensors      where images are drawn from a generator: its state, and while it is trained the optimiser's
generator.jsonl            its losses
"""

import hashlib
import json
import math
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qvit.errors import InputError, UsageError

FORMAT, FORMAT_VERSION = "qvit-images", 1
MANIFEST, LOG = "manifest.json", "log.jsonl"
_SHARDS, _LOGS = "shards", "logs"
_PARTIAL = ".partial"


class RunFolder:
    """One run's folder, which any number of processes fill at the same time.

    Attributes:
        path: Of the folder.
        described: What the manifest says whatever process writes it, `fingerprint` among it.
        batches: How many there are.
    """

    def __init__(self, path: Path, described: Mapping[str, Any], batches: int) -> None:
        self.path = path
        self.described = dict(described)
        self.batches = batches
        self._digests: dict[int, str] = {}  # sha256 of shards that were finished with their run

    def check(self, resume: str) -> None:
        """Whether this run may have the folder; changes nothing.

        Raises:
            UsageError: It holds something else, another run, or anything at all with resume="never".
        """
        _check_place(self.path)
        if self._begun():
            if resume == "never":
                raise UsageError(
                    f"{self.path} exists; continue it with --resume auto, or choose another folder with -o"
                )
            self._check_same(read_manifest(self.path))

    def open(self) -> None:
        """Make the folder, or take it up where it was left. Raises UsageError where it holds another run."""
        # The manifest comes first: a folder with anything else in it and none would be taken for somebody else's, by a
        # process that starts at the same moment, and by the next command if this one is killed here.
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / MANIFEST).exists():
            self._write_manifest({"complete": False})
        found = read_manifest(self.path)
        self._check_same(found)  # another run may have come first since the check
        if found.get("complete"):
            self._digests = {n: shard["sha256"] for n, shard in enumerate(found["shards"])}
        for room in (_SHARDS, _LOGS):
            (self.path / room).mkdir(exist_ok=True)

    def _begun(self) -> bool:
        """Whether anything is in the folder, apart from files that another process is just writing."""
        return self.path.exists() and any(
            not (path.name.startswith(".") and path.name.endswith(_PARTIAL))
            for path in self.path.iterdir()
        )

    def _check_same(self, found: Mapping[str, Any]) -> None:
        if found.get("fingerprint") == self.described["fingerprint"]:
            return
        theirs, ours = found.get("run") or {}, self.described["run"]
        names = [name for name in ours if ours[name] != theirs.get(name)]
        told = "; ".join(
            f"{n}: {_short(theirs.get(n))} there, {_short(ours[n])} now" for n in names
        )
        raise UsageError(
            f"{self.path} holds another run ({told or 'its manifest was changed'}); "
            "repeat the command that began it, or choose another folder with -o"
        )

    def shard(self, batch: int) -> Path:
        """Where a batch's images are."""
        return self.path / _SHARDS / f"{batch:06d}.safetensors"

    def log(self, batch: int) -> Path:
        """Where a batch's losses and measures are."""
        return self.path / _LOGS / f"{batch:06d}.jsonl"

    def missing(self, batches: Sequence[int]) -> list[int]:
        """Those of the batches that are not finished, or no longer what they were when the run was.

        Raises:
            InputError: A shard is damaged, or none of this run and batch.
        """
        return [batch for batch in batches if not self._holds(batch)]

    def _holds(self, batch: int) -> bool:
        path, digest = self.shard(batch), self._digests.get(batch)
        if not path.exists() or not self.log(batch).exists():
            return False
        if digest is not None:
            return _hash_file(path) == digest
        self._read_header(batch)
        return True

    def _read_header(self, batch: int) -> dict[str, Any]:
        path = self.shard(batch)
        header = read_header(path)
        if header.get("fingerprint") != self.described["fingerprint"]:
            raise InputError(f"{path} belongs to another run; remove it and run the command again")
        if header.get("batch") != batch:
            raise InputError(
                f"{path} holds batch {header.get('batch')}; remove it and run the command again"
            )
        return header

    def write(
        self, batch: int, images: Tensor, labels: Tensor, attempt: int, lines: Sequence[Any]
    ) -> None:
        """Finish a batch: its log first, so that a shard never lacks one."""
        self.note(batch, lines)
        tensors = {
            "images": images.to("cpu", torch.float16).contiguous(),
            "labels": labels.cpu().contiguous(),
        }
        # One key only: safetensors writes several in an order that changes from run to run.
        facts = {"batch": batch, "attempt": attempt, "fingerprint": self.described["fingerprint"]}
        write_whole(self.shard(batch), save(tensors, {"qvit": json.dumps(facts, sort_keys=True)}))

    def note(self, batch: int, lines: Sequence[Any]) -> None:
        """Write what a batch has to say so far, for those who watch; the batch is not finished by it."""
        text = "".join(json.dumps(_finite(line), allow_nan=False) + "\n" for line in lines)
        write_whole(self.log(batch), text.encode())

    def finish(self) -> bool:
        """If no batch is missing, write the whole log and the final manifest; returns whether it is complete.

        Every process that sees the last shard writes the same bytes, so it does not matter which is first.
        """
        if self.missing(range(self.batches)):
            return False
        shards = [self._describe(batch) for batch in range(self.batches)]
        logs = b"".join(self.log(batch).read_bytes() for batch in range(self.batches))
        whole = self.path / LOG
        if not whole.exists() or whole.read_bytes() != logs:  # a batch may have been made again
            write_whole(whole, logs)
        retried = sum(shard["attempt"] for shard in shards)
        self._write_manifest({"complete": True, "retried": retried, "shards": shards})
        for room in (self.path, self.path / _SHARDS, self.path / _LOGS):
            _sweep(room)
        return True

    def _describe(self, batch: int) -> dict[str, Any]:
        path, header = self.shard(batch), self._read_header(batch)
        return {
            "file": f"{_SHARDS}/{path.name}",
            "images": header["images"],
            "attempt": header["attempt"],
            "sha256": _hash_file(path),
        }

    def _write_manifest(self, state: Mapping[str, Any]) -> None:
        text = json.dumps({**self.described, **state}, indent=2) + "\n"
        write_whole(self.path / MANIFEST, text.encode())


def read_header(path: Path) -> dict[str, Any]:
    """What a shard says of itself: batch, attempt, fingerprint, and the number of images.

    Raises:
        InputError: It is no shard, or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["qvit"])
            return {**facts, "images": file.get_slice("images").get_shape()[0]}
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{path} is damaged ({error}); remove it and run the command again"
        ) from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run's folder.

    Raises:
        UsageError: There is none, it is none of ours, or a version of qvit wrote it that this one cannot read.
    """
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder} holds something else than images of qvit; choose another folder with -o"
        ) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UsageError(
            f"{folder} holds something else than images of qvit; choose another folder with -o"
        )
    version = found.get("format_version")
    if version != FORMAT_VERSION:
        raise UsageError(
            f"{folder} has format_version {version}, and this qvit reads {FORMAT_VERSION}; use the version that wrote "
            "it, or make the images again in another folder"
        )
    return found


def _finite(value: Any) -> Any:
    """The value with null for every number that JSON has no name for."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def fingerprint(run: Mapping[str, Any]) -> str:
    """A sha256 (hex) over everything that decides the bytes of a run."""
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()


def write_whole(path: Path, data: bytes) -> None:
    """Write beside, to the disk, and rename: the file has all its bytes or does not exist."""
    beside = path.with_name(f".{path.name}.{_process()}{_PARTIAL}")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _process() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def _sweep(room: Path) -> None:
    """Remove what processes of this machine that were killed left half-written."""
    for path in room.glob(f".*{_PARTIAL}"):
        host, _, number = path.name.removesuffix(_PARTIAL).rpartition("-")
        if (
            host.endswith(f".{socket.gethostname()}")
            and number.isdecimal()
            and not _runs(int(number))
        ):
            path.unlink(missing_ok=True)


def _runs(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True


def _check_place(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file; choose another folder with -o")
    above = next(p for p in (path, *path.parents) if p.exists())
    if not above.is_dir():
        raise UsageError(f"{path}: {above} is a file; choose another folder with -o")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"{path}: {above} may not be written to; choose another folder with -o")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


class Images:
    """The images of a finished run, a batch at a time.

    Iterating gives (images float32 [B, C, H, W] normalised, labels int64 [B] or float32 [B, classes]); len() counts
    images. `manifest` is what manifest.json holds.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._files = [folder / shard["file"] for shard in manifest["shards"]]

    def __len__(self) -> int:
        return sum(shard["images"] for shard in self.manifest["shards"])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for path, shard in zip(self._files, self.manifest["shards"], strict=True):
            try:
                data = path.read_bytes()
            except OSError as error:
                raise InputError(
                    f"{path} cannot be read: {error}; make the images again"
                ) from error
            if hashlib.sha256(data).hexdigest() != shard["sha256"]:
                raise InputError(f"{path} is not what the manifest says; make the images again")
            yield _read_shard(data)

    def log(self) -> Iterator[dict[str, Any]]:
        """The lines of log.jsonl."""
        with (self.folder / LOG).open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


def _read_shard(data: bytes) -> tuple[Tensor, Tensor]:
    from safetensors.torch import load

    tensors = load(data)
    return tensors["images"].float(), tensors["labels"]


def open_images(folder: str | Path) -> Images:
    """The images that `synthesize` wrote.

    Raises:
        InputError: The folder does not exist, is no run's, or is not complete.
    """
    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
    except UsageError as error:
        if "format_version" in str(error):
            raise InputError(str(error)) from error
        raise InputError(
            f"{folder} holds no images of qvit; `qvit synthesize` writes some"
        ) from error
    if not manifest.get("complete"):
        raise InputError(
            f"{folder} is not complete; repeat the command that began it, it goes on where it stopped"
        )
    return Images(folder, manifest)


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
