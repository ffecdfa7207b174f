"""`qvit synthesize`: a pretrained model in, a folder of images made from its weights out."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from qvit.cli.exits import print_line
from qvit.cli.session import Result, Session, outline, verb
from qvit.cli.target import announce, name_folder
from qvit.errors import UsageError
from qvit.recipe import METHODS, PRECISIONS, Recipe, Synthesis

_SPARSE = 0.3  # of the remaining patches at a time, as published (SMI, Hu et al., ICML 2024)
_COUNTS = {"images": "-n", "batch": "--batch", "iterations": "--iterations"}


@verb("synthesize")
@click.argument("model")
@click.option("--method", default="mimiq", show_default=True, help=f"How: {', '.join(METHODS)}.")
@click.option("-n", "--count", "images", type=int, help="How many images [the method's own].")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Folder to write [out/MODEL-METHOD]."
)
@click.option("-b", "--batch", type=int, help="Images optimised together [the method's own].")
@click.option("--iterations", type=int, help="Steps of a batch [the method's own].")
@click.option(
    "--sparse", type=float, is_flag=False, flag_value=_SPARSE, metavar="[SHARE]",
    help=f"Drop the least attended patches on the way: fewer tokens, faster [{_SPARSE:g}].",
)  # fmt: skip
@click.option(
    "--images", "data", metavar="PATH", help="Your own images, for the methods folder and real."
)
@click.option("--class-map", metavar="FILE", help="Their class names in index order, as timm's.")
@click.option(
    "--set", "settings", multiple=True, metavar="synthesis.KEY=VALUE", help="Change any constant."
)
@click.option("--seed", default=0, show_default=True, help="Seed of everything random.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option(
    "--precision", type=click.Choice(("auto", *PRECISIONS)), default="auto", show_default=True,
    help="Of the matrix products; auto: bfloat16 where this machine is faster in it.",
)  # fmt: skip
@click.option(
    "--weights", type=click.Path(path_type=Path), metavar="FILE",
    help="Float weights: .safetensors, or .pth without code.",
)  # fmt: skip
@click.option(
    "--resume", type=click.Choice(("auto", "never")), default="auto", show_default=True,
    help="Go on with the same run where it stopped, or refuse a folder that holds anything.",
)  # fmt: skip
@click.option("--shard", metavar="I/N", help="Make share I of N only, counted from 0.")
@click.option("--dry-run", is_flag=True, help="Say what it would take, and do nothing.")
def command(session: Session, model: str, **options: Any) -> Result:
    """Make images from the weights of MODEL alone, into a folder that `qvit report` and later stages read.

    Stopped at any moment, the same command goes on where it was and ends with the same images. With
    several processes: torchrun --nproc-per-node N -m qvit synthesize ..., or --shard I/N in each.
    """
    settings = choose_settings(options)
    shard = parse_shard(options["shard"])
    seed = Recipe(seed=options["seed"]).seed

    from timm.utils.distributed import is_distributed_env, world_info_from_env

    from qvit import synthesis, zoo
    from qvit.deployment.placement import require_device

    require_device(options["device"])
    settings = _with_precision(settings, options)
    _, rank, processes = world_info_from_env() if is_distributed_env() else (0, 0, 1)
    shares = processes if shard is None else shard[1]
    shown = session.verbosity >= 0 and rank == 0
    source = zoo.resolve(model, weights=options["weights"])
    if shown:
        announce(source)
    out = options["out"] or Path("out") / f"{name_folder(model)}-{settings.method}"
    plan = synthesis.estimate(source, settings, shares=shares, device=options["device"])
    if options["dry_run"]:
        planned = {"out": str(out), **plan, "settings": dataclasses.asdict(settings)}
        return Result(planned, outline(planned), silent=rank > 0)
    if shown:
        _announce_plan(plan, shares)
    found = synthesis.synthesize(
        source,
        settings,
        out,
        seed=seed,
        resume=options["resume"],
        shard=shard,
        device=options["device"],
        progress=session.progress,
    )
    return Result(found, outline(found), silent=rank > 0)


def choose_settings(options: Mapping[str, Any]) -> Synthesis:
    """The method's preset, what the flags change, then what --set changes. Raises UsageError."""
    for name, flag in _COUNTS.items():
        if options[name] is not None and options[name] < 1:
            raise UsageError(f"{flag} {options[name]}: at least 1 is needed")
    names = (*_COUNTS, "sparse", "data", "class_map")
    given = {name: options[name] for name in names if options[name] is not None}
    if options["precision"] != "auto":
        given["precision"] = options["precision"]
    for setting in options["settings"]:
        if not setting.strip().startswith("synthesis."):
            raise UsageError(
                f"--set {setting}: only what decides the images can be set here, such as synthesis.lr=0.1"
            )
    preset = Synthesis.preset(options["method"], **given)
    settings = Recipe(synthesis=preset).override(options["settings"]).synthesis
    assert settings is not None
    if not settings.data_free and not settings.data:
        raise UsageError(f"--method {settings.method} reads images: say which with --images PATH")
    return settings


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """ "1/4" to (1, 4): which share, counted from 0, of how many. Raises UsageError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise UsageError(f"--shard {text!r}: expected I/N, counted from 0, such as 0/4 to 3/4")
    return int(match[1]), int(match[2])


def _with_precision(settings: Synthesis, options: Mapping[str, Any]) -> Synthesis:
    """The faster precision of this machine, where neither --precision nor --set names one."""
    named = any(s.strip().startswith("synthesis.precision=") for s in options["settings"])
    if options["precision"] != "auto" or named or not settings.optimised:
        return settings
    from qvit.synthesis import fastest_precision

    return dataclasses.replace(settings, precision=fastest_precision(options["device"]))


def _announce_plan(plan: Mapping[str, Any], shares: int) -> None:
    seconds, memory = plan["estimated_seconds"], plan["estimated_memory_bytes"]
    minutes = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
    each = f" for each of {shares} processes" if shares > 1 else ""
    if plan["estimated_on"] != "cpu":
        each += " on this machine's processor; not measured on this card"
    print_line(
        f"{plan['images']} images in {plan['batches']} batches by {plan['method']}: about {minutes} and"
        f" {memory / 1e9:.1f} GB of memory{each}"
    )
