"""Names that are downloaded, against a hub on loopback."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qvit import zoo
from qvit.errors import InputError, RequirementError, UsageError
from tests.hub import COMMIT, Hub, serve, write_repository

DEIT_T = "deit_tiny_patch16_224.fb_in1k"
LOAD = """
import json, sys
from safetensors.torch import save_file
from qvit import zoo
source = zoo.resolve(sys.argv[1])
save_file(zoo.load(source).state_dict(), sys.argv[2])
print(json.dumps({"timm_name": source.timm_name, "license": source.license}))
"""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repositories")
    write_repository(root, DEIT_T)
    return root


@pytest.fixture
def hub(repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub, with this process's client pointed at it and an empty cache."""
    from huggingface_hub import constants

    with serve(repositories) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield running


def test_an_alias_is_downloaded_and_loads_then_works_offline(
    repositories: Path, tmp_path: Path, child_environment: dict[str, str]
) -> None:
    stored = load_file(repositories / "timm" / DEIT_T / "model.safetensors")
    path = {"PYTHONPATH": child_environment["PYTHONPATH"]}
    with serve(repositories) as hub:
        environment = hub.environment(tmp_path / "cache") | path
        first = run_child(["deit_t", str(tmp_path / "first.safetensors")], environment)
        fetched = [path for method, path in hub.requests if method == "GET"]
        assert f"/timm/{DEIT_T}/resolve/main/model.safetensors" in fetched
    assert json.loads(first.stdout) == {"timm_name": DEIT_T, "license": "apache-2.0"}
    assert equal(load_file(tmp_path / "first.safetensors"), stored)

    environment = environment | {"HF_HUB_OFFLINE": "1"}  # and the server is gone
    run_child(["deit_t", str(tmp_path / "second.safetensors")], environment)
    assert equal(load_file(tmp_path / "second.safetensors"), stored)


def run_child(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "error", "-c", LOAD, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first
    )


@pytest.mark.parametrize("name", [f"hf-hub:timm/{DEIT_T}", f"hf-hub:timm/{DEIT_T}@{COMMIT}"])
def test_a_repository_is_resolved_through_its_config(hub: Hub, name: str) -> None:
    source = zoo.resolve(name)
    assert not any("model.safetensors" in path for _, path in hub.requests)
    assert source.timm_name == DEIT_T
    assert source.license == "apache-2.0"
    assert source.pretrained_cfg["input_size"] == (3, 224, 224)
    stored = load_file(hub.root / "timm" / DEIT_T / "model.safetensors")
    assert equal(zoo.load(source).state_dict(), stored)


@pytest.mark.parametrize(
    ("repository", "licence"), [(f"timm/{DEIT_T}", "apache-2.0"), ("someone/copy", None)]
)
def test_the_registry_fills_in_the_licence_of_its_own_repositories_only(
    repositories: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    repository: str,
    licence: str | None,
) -> None:
    config = json.loads((repositories / "timm" / DEIT_T / "config.json").read_text())
    del config["pretrained_cfg"]["license"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("qvit.zoo.lookup.download", lambda repo, files: tmp_path / "config.json")
    assert zoo.resolve(f"hf-hub:{repository}").license == licence


def test_a_pickle_is_taken_where_there_is_no_safetensors(hub: Hub) -> None:
    folder = hub.root / "someone" / "pickled"
    folder.mkdir(parents=True, exist_ok=True)
    original = hub.root / "timm" / DEIT_T
    (folder / "config.json").write_bytes((original / "config.json").read_bytes())
    stored = load_file(original / "model.safetensors")
    torch.save(stored, folder / "pytorch_model.bin")
    source = zoo.resolve("hf-hub:someone/pickled")
    assert zoo.fetch(source) is not None
    assert equal(zoo.load(source).state_dict(), stored)


def test_a_repository_without_weights_names_what_was_looked_for(hub: Hub) -> None:
    folder = hub.root / "someone" / "empty"
    folder.mkdir(parents=True, exist_ok=True)
    config = hub.root / "timm" / DEIT_T / "config.json"
    (folder / "config.json").write_bytes(config.read_bytes())
    source = zoo.resolve("hf-hub:someone/empty")
    with pytest.raises(RequirementError, match=r"none of model.safetensors, pytorch_model.bin"):
        zoo.load(source)


def test_an_absent_repository_names_the_endpoint_and_the_ways_out(hub: Hub) -> None:
    source = zoo.resolve("deit_s")
    with pytest.raises(RequirementError) as caught:
        zoo.load(source)
    message = str(caught.value)
    for part in ("model.safetensors", "timm/deit_small_patch16_224.fb_in1k", hub.url):
        assert part in message
    assert "no such repository" in message
    assert "--weights" in message
    assert "--no-pretrained" in message


def test_an_absent_revision_is_named(hub: Hub) -> None:
    with pytest.raises(RequirementError, match="no such revision"):
        zoo.resolve(f"hf-hub:timm/{DEIT_T}@v9")


@pytest.mark.usefixtures("hub")
def test_a_name_that_is_no_repository_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no repository name"):
        zoo.resolve("hf-hub:a/b/c")


def test_offline_without_a_cached_file_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RequirementError, match="HF_HUB_OFFLINE is set"):
        zoo.load(zoo.resolve("deit_t"))
    assert hub.requests == []


def test_a_config_of_another_library_is_refused(hub: Hub) -> None:
    folder = hub.root / "someone" / "transformers"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    with pytest.raises(InputError, match="not a timm configuration"):
        zoo.resolve("hf-hub:someone/transformers")


def test_the_server_sends_ranges(hub: Hub) -> None:
    """What a client asks for when it resumes a download."""
    import urllib.request

    url = f"{hub.url}/timm/{DEIT_T}/resolve/main/config.json"
    request = urllib.request.Request(url, headers={"Range": "bytes=5-9"})
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 206
        assert answer.read() == (hub.root / "timm" / DEIT_T / "config.json").read_bytes()[5:10]
