"""Downloads from a Hugging Face hub, with failures turned into one sentence and the ways out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from qvit.errors import InputError, RequirementError, UsageError

_WAYS_OUT = (
    "Give a local file with --weights FILE, use --no-pretrained for random weights,"
    " or point HF_ENDPOINT at a mirror that can be reached"
)
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def download(repo: str, candidates: Sequence[str], *, advice: str = _WAYS_OUT) -> Path:
    """Fetch the first file of `candidates` that the repository has, through the hub's cache.

    Args:
        repo: "org/name" or "org/name@revision".
        candidates: File names in order of preference.
        advice: What else the user can do, for the message of a failure.

    Returns:
        The file in the local cache.

    Raises:
        UsageError: `repo` is no repository name.
        RequirementError: It cannot be reached, does not exist, is gated, or has none of the files.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    repo_id, _, revision = repo.partition("@")
    for filename in candidates:
        try:
            return Path(
                hf_hub_download(repo_id, filename, revision=revision or None, library_name="qvit")
            )
        except HFValidationError as error:
            raise UsageError(f"hf-hub:{repo} is no repository name: {error}") from error
        except (
            LocalEntryNotFoundError
        ) as error:  # no answer and nothing in the cache; a kind of the next
            _refuse(repo, filename, error, advice)
        except EntryNotFoundError:
            continue
        except Exception as error:  # noqa: BLE001 (the client passes on errors of an HTTP library that varies)
            _refuse(repo, filename, error, advice)
    raise RequirementError(
        f"{repo} at {_endpoint()} has none of {', '.join(candidates)}. {advice}."
    )


def weight_files(cfg: dict[str, Any]) -> list[str]:
    """The file names that a repository may use for the weights of `cfg`, safetensors first."""
    named = cfg.get("hf_hub_filename")
    if not named:
        return list(_WEIGHTS)
    safe = named.replace("pytorch_model.bin", "model.safetensors")
    return [safe, named] if safe != named else [named]


def read_config(path: Path, origin: str) -> dict[str, Any]:
    """A timm `config.json` of a float model, parsed.

    Args:
        path: The file.
        origin: What the user typed, for the messages.

    Raises:
        InputError: It is no JSON, not timm's format, or belongs to a model that is quantized
            already.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{origin}: {path} is not readable JSON ({error}).") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise InputError(
            f"{origin}: {path} is not a timm configuration, which names its 'architecture'. qvit"
            " reads timm's format; models of other libraries have to be converted to it."
        )
    if "quantization_config" in config:
        raise InputError(
            f"{origin} holds a model that is quantized already; a float model is needed here. Name"
            " the model it was made from, or use `qvit info` to see which that was."
        )
    return config


def _refuse(repo: str, filename: str, error: Exception, advice: str) -> NoReturn:
    reason = _explain(error)
    raise RequirementError(
        f"{filename} of {repo} could not be downloaded from {_endpoint()}: {reason}. {advice}."
    ) from error


def _explain(error: BaseException) -> str:
    """Why a download failed, as a clause of a sentence."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return _explain(error.__cause__)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set and the file is not in the cache"
    if isinstance(error, GatedRepoError):
        return "access to it is restricted; accept its terms on the site and set HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private (then set HF_TOKEN)"
    if isinstance(error, HfHubHTTPError):
        return f"the server answered {error.response.status_code}"
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT
