"""A folder's own records, as sections read them: manifest and log of a synthesis, or what a quantized model holds."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvit.deployment import checkpoint
from qvit.deployment.provenance import read_architecture
from qvit.errors import InputError
from qvit.kept import EVALUATION, LATENCY, SCHEMA_VERSIONS, SENSITIVITY
from qvit.report.evidence import Run, Trace
from qvit.report.samples import Samples, find_samples
from qvit.synthesis import training

# What stands beside the losses in a line of the log.
_PLACES = {"batch", "iteration", "seconds", "event", "attempt"}
MEASURES = ("head_distance", "patch_entropy")


def read_run(folder: Path, manifest: Mapping[str, Any], log: Iterable[Mapping[str, Any]]) -> Run:
    """Sort the lines of a log into traces; those of an attempt that was given up are left out.

    Where images were drawn from a generator, its training is the trace of the losses.

    A line is a sample of the losses, a measurement ("measured"), an attempt that was given up ("retried"), or the
    end of a batch ("finished") with its measures before and after.
    """
    terms: dict[str, dict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    measured: dict[str, dict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    recoveries, seconds = [], 0.0
    last = manifest["settings"]["iterations"]
    for line in log:
        batch, event = line["batch"], line.get("event")
        if event == "retried":
            for traces in (*terms.values(), *measured.values()):
                traces.pop(batch, None)
            recoveries.append(
                f"Batch {batch}: the loss was not finite at iteration {line['iteration']}; it was made again with"
                " another seed."
            )
        elif event == "measured":
            for name in MEASURES:
                measured[name][batch].append((line["iteration"], line[name]))
        elif event == "finished":
            seconds += line["seconds"]
            for name in MEASURES:
                inner = [point for point in measured[name][batch] if 0 < point[0] < last]
                ends = (0, line["before"][name]), (last, line["after"][name])
                measured[name][batch] = [ends[0], *inner, ends[1]]
        else:
            for name in line.keys() - _PLACES:
                terms[name][batch].append((line["iteration"], line[name]))
    trained = _read_training(folder)
    for line in trained:
        for name in line.keys() - _PLACES:
            terms[name][0].append((line["iteration"], line[name]))
    seconds += trained[-1]["seconds"] if trained else 0.0
    order = sorted(terms, key=lambda name: (name != "loss", name))
    return Run(
        path=folder,
        manifest=manifest,
        seconds=seconds,
        terms={name: _without_gaps(terms[name]) for name in order},
        measures={name: _without_gaps(measured[name]) for name in MEASURES} if last else {},
        recoveries=recoveries,
    )


def _without_gaps(trace: Trace) -> Trace:
    """Without values that were not finite, for which the log has null, and batches that have no others."""
    kept = {batch: [p for p in points if p[1] is not None] for batch, points in trace.items()}
    return {batch: points for batch, points in kept.items() if points}


def _read_training(folder: Path) -> list[dict[str, Any]]:
    """The lines of a generator's training; none where there is none."""
    path = folder / training.LOG
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A quantized folder as its own files tell it.

    Attributes:
        path: The folder.
        name: The float model's.
        scheme: Such as "W4A8".
        weights_bytes: Of model.safetensors.
        fp32_bytes: Of the float weights; None where that is not known.
        bits: As `qvit info` lists them.
        residual: Dtype of the residual stream.
        license: Of the float weights, where they say.
        license_note: What it forbids.
        recipe: recipe.yaml.
        run: run.json.
        samples: Of the images that it was rounded for or trained on; None where there were none.
        evaluation, latency, sensitivity: What `eval`, `bench` and `sense` have kept there; None where they have not.
    """

    path: Path
    name: str
    scheme: str
    weights_bytes: int
    fp32_bytes: int | None
    bits: Sequence[Mapping[str, Any]]
    residual: str
    license: str | None
    license_note: str
    recipe: str
    run: Mapping[str, Any]
    samples: Samples | None = None
    evaluation: Mapping[str, Any] | None = None
    latency: Mapping[str, Any] | None = None
    sensitivity: Mapping[str, Any] | None = None


def read_folder(path: Path) -> Folder:
    """Read a quantized folder's records; raises InputError for a folder or a record that is broken."""
    import torch

    from qvit import zoo

    described = checkpoint.describe(path)
    source = read_architecture(path)
    with torch.device("meta"):
        fp32_bytes = sum(4 * p.numel() for p in zoo.build(source).parameters())
    recipe, run = path / checkpoint.RECIPE, checkpoint.read_run(path)
    note = "The licence of the float weights does not allow commercial use, and holds for this model too."
    return Folder(
        path=path.resolve(),
        name=source.timm_name,
        scheme=described["scheme"],
        weights_bytes=described["weights_bytes"],
        fp32_bytes=fp32_bytes,
        bits=described["bits"],
        residual=described["residual"],
        license=described["license"],
        license_note=note if described["license"] and source.non_commercial else "",
        recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
        run=run,
        samples=find_samples(path, run, source),
        evaluation=_read_kept(path / EVALUATION, "top1", "qvit eval"),
        latency=_read_kept(path / LATENCY, "rows", "qvit bench"),
        sensitivity=_read_kept(path / SENSITIVITY, "layers", "qvit sense"),
    )


def _read_kept(path: Path, key: str, verb: str) -> Mapping[str, Any] | None:
    """A record of the schema that the page is made from; None where it is not there. `key`: What it must have."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read: {error}; remove it, or measure again with `{verb}`"
        ) from error
    if not isinstance(found, dict) or key not in found:
        raise InputError(f"{path} is no result of `{verb}`; remove it, or measure again")
    schema = SCHEMA_VERSIONS.get(path.name)
    if schema is not None and found.get("schema_version") != schema:
        raise InputError(
            f"{path} has schema version {found.get('schema_version')!r}, and this qvit reads {schema}; remove it, or "
            f"measure again with `{verb}`"
        )
    return found
