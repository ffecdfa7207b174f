"""From what the user typed to a float model: resolve the name, fetch the weights, fill it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvit.errors import InputError, RequirementError, UsageError
from qvit.zoo.hub import download, weight_files
from qvit.zoo.lookup import look_up
from qvit.zoo.weights import check_file, classifier_rows, load_into, read_state

if TYPE_CHECKING:
    from torch import nn

# What timm itself looks for in a folder, safetensors before pickles.
_FOLDER_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
# Beside every "-nc" and "noncommercial" licence: Apple's for research models allows research
# purposes only.
_RESEARCH_ONLY = ("apple-amlr",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a float model's architecture, weights and preprocessing come from.

    Attributes:
        name: What the user typed.
        architecture: timm's name without weight tag, "vit_tiny_patch16_224".
        tag: The weight tag, "" where there is none.
        weights: The file given with --weights, None for the weights that belong to the name.
        pretrained: False for random weights.
        pretrained_cfg: timm's: input_size, mean, std, interpolation, crop_pct, crop_mode,
            num_classes, license, ...
        model_args: Further arguments of timm.create_model, from a folder's or repository's
            config.json.
    """

    name: str
    architecture: str
    tag: str = ""
    weights: Path | None = None
    pretrained: bool = True
    pretrained_cfg: dict[str, Any] = field(default_factory=dict)
    model_args: dict[str, Any] = field(default_factory=dict)

    @property
    def timm_name(self) -> str:
        """The architecture with its weight tag, "vit_tiny_patch16_224.augreg_in21k_ft_in1k"."""
        return f"{self.architecture}.{self.tag}" if self.tag else self.architecture

    @property
    def num_classes(self) -> int:
        """Rows of the classifier; 0 for a model that ends in features."""
        return int(self.model_args.get("num_classes", self.pretrained_cfg.get("num_classes", 1000)))

    @property
    def license(self) -> str | None:
        """The licence that timm records for the weights; None if unknown or the weights random."""
        return self.pretrained_cfg.get("license") if self.pretrained else None

    @property
    def non_commercial(self) -> bool:
        """Whether that licence forbids commercial use."""
        licence = (self.license or "").lower()
        return "-nc" in licence or "noncommercial" in licence or licence in _RESEARCH_ONLY


def resolve(name: str, *, weights: str | Path | None = None, pretrained: bool = True) -> Source:
    """Find out what a model name means, without downloading weights.

    Only `hf-hub:` reaches for the network, for the repository's config.json.

    Args:
        name: An alias (`vit_t`), a timm name with or without tag, `hf-hub:org/repo[@revision]`,
            `local-dir:/path` or the path of a folder in timm's format.
        weights: A weight file to use instead of those that belong to the name. The number of
            classes follows its head.
        pretrained: False for random weights.

    Raises:
        UsageError: The name is unknown or ambiguous, or random weights are asked for together with
            a file.
        InputError: The folder, its configuration or the weight file is absent, corrupt or of the
            wrong kind.
        RequirementError: A download failed, or the name has no downloadable weights.
    """
    if weights is not None and not pretrained:
        raise UsageError("--weights and --no-pretrained exclude each other: give one of them.")
    path = Path(weights).expanduser() if weights is not None else None
    if path is not None:
        check_file(path)
    if not name.strip():
        raise UsageError("The model name is empty. `qvit models` lists names.")
    architecture, cfg, model_args = look_up(name)
    if path is not None:
        cfg, model_args = _with_head_of(path, cfg, model_args)
    source = Source(
        name=name,
        architecture=architecture,
        tag=cfg.get("tag") or "",
        weights=path,
        pretrained=pretrained,
        pretrained_cfg=cfg,
        model_args=model_args,
    )
    _check_weights_exist(source)
    return source


def fetch(source: Source) -> Path | None:
    """The local file that holds the weights, downloaded through the hub's cache where needed.

    Returns:
        The file; None for random weights.

    Raises:
        RequirementError: The download failed.
        InputError: The folder holds no weights.
    """
    if not source.pretrained:
        return None
    if source.weights is not None:
        return source.weights
    if source.pretrained_cfg.get("source") == "local-dir":
        return _weights_in(Path(source.pretrained_cfg["file"]))
    return download(source.pretrained_cfg["hf_hub_id"], weight_files(source.pretrained_cfg))


def load(source: Source, *, seed: int = 0) -> "nn.Module":
    """Build the float model: timm's module in eval mode, fp32, on the CPU.

    Args:
        source: As `resolve` returns it.
        seed: Of the random weights, without pretrained ones. The global random state is left as it
            was.

    Raises:
        RequirementError: The download failed.
        InputError: The weights are unreadable, do not fit or are not finite; or timm cannot build
            the model that a configuration asks for.
    """
    path = fetch(source)
    state = read_state(path) if path is not None else None
    model = build(source, seed=seed)
    if state is not None:
        load_into(model, state, architecture=source.timm_name, origin=str(path))
    return model.float().eval()


def _with_head_of(
    path: Path, cfg: dict[str, Any], model_args: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration with the number of classes that the weight file has."""
    rows = classifier_rows(path, cfg.get("classifier"))
    if rows is None or rows == model_args.get("num_classes", cfg.get("num_classes")):
        return cfg, model_args
    cfg = {k: v for k, v in cfg.items() if k not in ("label_names", "label_descriptions")}
    cfg["num_classes"] = rows
    if "num_classes" in model_args:
        model_args = {**model_args, "num_classes": rows}
    return cfg, model_args


def _check_weights_exist(source: Source) -> None:
    """Refuse a source without weights before anything is built or downloaded."""
    if not source.pretrained or source.weights is not None:
        return
    cfg = source.pretrained_cfg
    if cfg.get("source") == "local-dir":
        _weights_in(Path(cfg["file"]))
    elif not cfg.get("hf_hub_id"):
        elsewhere = f"; its authors' file is at {cfg['url']}" if cfg.get("url") else ""
        raise RequirementError(
            f"timm's hub has no weights of {source.timm_name}{elsewhere}. Give a local file with"
            " --weights FILE, or use --no-pretrained for random weights."
        )


def _weights_in(folder: Path) -> Path:
    for filename in _FOLDER_WEIGHTS:
        if (folder / filename).is_file():
            return folder / filename
    raise InputError(
        f"The model folder {folder} has none of {', '.join(_FOLDER_WEIGHTS)}. Add the weights, give"
        " them with --weights FILE, or use --no-pretrained for random ones."
    )


def build(source: Source, *, seed: int = 0) -> "nn.Module":
    """The model of a source with random weights; under `torch.device("meta")` with none.

    Raises:
        InputError: timm cannot build what a configuration asks for.
    """
    import timm
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            return timm.create_model(
                source.architecture,
                pretrained=False,
                pretrained_cfg=dict(source.pretrained_cfg),
                **source.model_args,
            )
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise InputError(
                f"timm cannot build {source.timm_name} with the arguments {source.model_args} of"
                f" {source.name}: {error}. Check model_args in its config.json."
            ) from error
