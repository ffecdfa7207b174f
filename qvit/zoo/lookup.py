"""What a model name means: a row of timm's registry, a repository, a folder, or a model in the package."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from qvit.demo.packaged import MODELS
from qvit.errors import InputError, UsageError
from qvit.zoo.hub import download, read_config
from qvit.zoo.names import aliases, nearest_names


def look_up(name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The architecture, timm's pretrained_cfg and the model arguments behind a name.

    Raises:
        UsageError: The name is unknown.
        InputError: The folder or its configuration is absent, corrupt or of the wrong kind.
        RequirementError: The configuration could not be downloaded.
    """
    prefix, colon, rest = name.partition(":")
    if colon and prefix.lower() in ("hf-hub", "hf_hub"):
        return _from_hub(rest, name)
    if colon and prefix.lower() == "local-dir":
        return _from_folder(Path(rest).expanduser(), name)
    if name in MODELS:
        return _from_folder(MODELS[name], name)
    timm_name = aliases().get(name, name)
    if _is_timm_name(timm_name):
        return _from_registry(timm_name)
    if Path(name).expanduser().is_dir():
        return _from_folder(Path(name).expanduser(), name)
    raise _unknown(name)


def _is_timm_name(name: str) -> bool:
    from timm.models import is_model, list_models, split_model_name_tag

    architecture = split_model_name_tag(name)[0]
    # is_model also knows deprecated names, which timm maps to others with a warning; list_models
    # leaves them out.
    return is_model(architecture) and architecture in list_models(architecture)


def _is_known_tag(timm_name: str) -> bool:
    from timm.models import list_models, split_model_name_tag

    architecture, tag = split_model_name_tag(timm_name)
    return not tag or timm_name in list_models(f"{architecture}.*", include_tags=True)


def _from_registry(timm_name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    from timm.models import get_pretrained_cfg, list_models, split_model_name_tag

    architecture, tag = split_model_name_tag(timm_name)
    cfg = get_pretrained_cfg(timm_name) if _is_known_tag(timm_name) else None
    if cfg is None:
        known = [n for n in list_models(f"{architecture}.*", include_tags=True) if "." in n]
        choice = f"its tags are {', '.join(known)}" if known else "it has no weight tags"
        raise UsageError(f"{architecture} has no weights with the tag '{tag}': {choice}.")
    return architecture, cfg.to_dict(), {}


def _from_hub(repo: str, name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    if not repo:
        raise UsageError(f"{name} names no repository: write hf-hub:org/repo.")
    config = read_config(download(repo, ["config.json"]), name)
    return _from_config(name, config, {"hf_hub_id": repo, "source": "hf-hub"})


def _from_folder(folder: Path, name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    path = folder / "config.json"
    if not path.is_file():
        what = "has no config.json" if folder.is_dir() else "does not exist"
        raise InputError(
            f"The folder {folder} {what}. A model folder holds timm's config.json and"
            " model.safetensors."
        )
    config = read_config(path, name)
    return _from_config(name, config, {"file": str(folder), "source": "local-dir"})


def _from_config(
    name: str, config: dict[str, Any], origin: dict[str, str]
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The contents of a config.json, completed with timm's defaults."""
    from timm.models import get_pretrained_cfg
    from timm.models._hub import _parse_model_cfg  # knows timm's older layouts; no public name
    from timm.models._pretrained import PretrainedCfg

    try:
        cfg, architecture, model_args = _parse_model_cfg(config, origin)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise InputError(
            f"{name}: its config.json is not laid out as timm writes it"
            f" ({type(error).__name__}: {error})."
        ) from error
    if not _is_timm_name(architecture):
        near = nearest_names(architecture)
        hint = f" The nearest are {', '.join(near)}." if near else ""
        raise InputError(
            f"{name}: its config.json names the architecture '{architecture}', which this timm does"
            f" not have.{hint}"
        )
    unknown = sorted(set(cfg) - {item.name for item in fields(PretrainedCfg)})
    if unknown:
        raise InputError(
            f"{name}: its config.json has settings that this timm does not know:"
            f" {', '.join(unknown)}. Upgrade timm, or remove them."
        )
    # timm keeps its settings as PretrainedCfg, whose defaults a sparse config.json relies on.
    complete = PretrainedCfg(**{"architecture": architecture, **cfg}).to_dict()
    registered = get_pretrained_cfg(architecture)
    if registered is not None and complete.get("classifier") is None:
        complete["classifier"] = registered.classifier
    repo = origin.get("hf_hub_id", "").partition("@")[0]
    if "license" not in complete and (licence := _recorded_licence(architecture, cfg, repo)):
        complete["license"] = licence
    size = model_args.get("img_size")
    if size is not None:  # what the model was built with wins over what its tag was trained at
        channels = model_args.get("in_chans", complete["input_size"][0])
        complete["input_size"] = (channels, *((size, size) if isinstance(size, int) else size))
    return architecture, complete, dict(model_args)


def _recorded_licence(architecture: str, cfg: dict[str, Any], repo: str) -> str | None:
    """What timm's registry says of the same repository; many config.json files say nothing."""
    from timm.models import get_pretrained_cfg

    timm_name = f"{architecture}.{cfg.get('tag')}"
    if not _is_known_tag(timm_name):
        return None
    registered = get_pretrained_cfg(timm_name)
    return registered.license if registered and registered.hf_hub_id == repo else None


def _unknown(name: str) -> UsageError | InputError:
    if Path(name).suffix.lower() in (".safetensors", ".pth", ".pt", ".bin"):
        return UsageError(
            f"'{name}' is a weight file; the model it belongs to has to be named: MODEL --weights"
            f" {name}."
        )
    if name.startswith(("/", "./", "../", "~")):
        return InputError(f"The model folder {name} does not exist. Check the path.")
    if "/" in name:
        return UsageError(
            f"'{name}' is neither an alias nor a folder here. For a repository on the hub write"
            f" hf-hub:{name}, for a folder local-dir:{name}."
        )
    near = nearest_names(name)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    return UsageError(
        f"Unknown model '{name}'.{hint} `qvit models` lists the short names; every timm name works"
        " as well, also with a weight tag, and so do hf-hub:org/repo and a folder in timm's format."
    )
