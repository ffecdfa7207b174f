"""A Hugging Face hub on loopback: enough of its protocol to download models without the internet.

with serve(root) as hub:                # root/<org>/<name>/<files>
    run_child(env=hub.environment(cache))
    assert ("GET", "/timm/.../model.safetensors") in hub.requests
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_FILE = re.compile(r"^/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)$")
_MODEL = re.compile(r"^/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?$")
_RANGE = re.compile(r"^bytes=(\d+)-(\d*)$")


@dataclass
class Hub:
    """A running server.

    Attributes:
        url: The endpoint.
        root: Folders <org>/<name> with the files of each repository.
        requests: (method, path) of everything that was asked for.
    """

    url: str
    root: Path
    requests: list[tuple[str, str]] = field(default_factory=list)

    def environment(self, cache: Path) -> dict[str, str]:
        """The environment of a child process that downloads from here, and only from here."""
        inherited = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        return inherited | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_CACHE": str(cache / "hub"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


@contextmanager
def serve(root: Path) -> Iterator[Hub]:
    """Serve the repositories below `root` until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = Hub(url=f"http://127.0.0.1:{server.server_address[1]}", root=root)
    server.hub = hub  # pyright: ignore[reportAttributeAccessIssue]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write_repository(root: Path, timm_name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Put a timm model with random weights where timm's hub repository of it would be.

    Returns:
        Its state dict.
    """
    import timm
    from timm.models._hub import save_for_hf

    torch.manual_seed(seed)
    model = timm.create_model(timm_name)
    for parameter in model.parameters():  # timm starts biases at zero: here every value matters
        torch.nn.init.normal_(parameter, std=0.05)
    save_for_hf(model, str(root / "timm" / timm_name), safe_serialization=True)
    return model.state_dict()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay quiet: tests look at `requests`."""

    def _answer(self, *, with_body: bool) -> None:
        hub: Hub = self.server.hub  # pyright: ignore[reportAttributeAccessIssue]
        path = self.path.partition("?")[0]
        hub.requests.append((self.command, path))
        if found := _FILE.match(path):
            self._answer_file(hub.root, found, with_body)
        elif found := _MODEL.match(path):
            self._answer_model(hub.root, found, with_body)
        else:
            self._refuse(404, "")

    def _answer_file(self, root: Path, asked: re.Match[str], with_body: bool) -> None:
        file = root / asked["repo"] / asked["file"]
        if not (root / asked["repo"]).is_dir():
            self._refuse(401, "RepoNotFound")  # what the hub says to strangers, private or absent
        elif asked["revision"] not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif not file.is_file():
            self._refuse(404, "EntryNotFound")
        else:
            self._send(file.read_bytes(), "application/octet-stream", with_body)

    def _answer_model(self, root: Path, asked: re.Match[str], with_body: bool) -> None:
        folder = root / asked["repo"]
        if not folder.is_dir():
            self._refuse(401, "RepoNotFound")
            return
        files = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
        answer = {"id": asked["repo"], "sha": COMMIT, "private": False, "siblings": files}
        self._send(json.dumps(answer).encode(), "application/json", with_body)

    def _send(self, body: bytes, kind: str, with_body: bool) -> None:
        etag = hashlib.sha256(body).hexdigest()
        total = len(body)
        if asked := _RANGE.match(self.headers.get("Range", "")):
            start, end = int(asked[1]), int(asked[2] or total - 1)
            body = body[start : end + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.end_headers()
