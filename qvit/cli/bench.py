"""`qvit bench`: how fast a folder runs beside its float model and other people's int8, and why."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from qvit.cli.outputs import check_file, write_text
from qvit.cli.session import Result, Session, tabulate, verb
from qvit.cli.target import as_folder
from qvit.errors import InputError, UsageError
from qvit.kept import BEST_FLOAT, LATENCY, is_own

_COLUMNS = {
    "batch": "batch",
    "variant": "variant",
    "storage_bits": "stored bits",
    "compute_dtype": "computes",
    "p50": "p50 ms",
    "p99": "p99 ms",
    "device_p50": "device p50",
    "images_per_s": "images/s",
    "speedup": "x best float",
    "peak_mem_mb": "peak MB",
    "weights_mb": "weights MB",
    "agree_top1_with_float": "same top-1 %",
}
_FORMATS = ("json", "csv", "md", "html")

logger = logging.getLogger("qvit")


@verb("bench")
@click.argument("target", metavar="FOLDER|MODEL")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, or cuda:1.")
@click.option("-b", "--batch", default="1,8", show_default=True, help="Batch sizes.")
@click.option(
    "--baseline", default="all", show_default=True, metavar="all|float|none|NAMES",
    help="What to time beside FOLDER: all that can run here, the float model alone, nothing, or variants by name "
    "(fp32, bf16-compile, torchao-int8, openvino-int8, ...; an unknown one is answered with all of them).",
)  # fmt: skip
@click.option("--backend", help="Of FOLDER: of auto, triton, cpu, reference [auto].")
@click.option(
    "--rounds",
    type=int,
    help="Turns of each variant at each batch size [as many as fit 40 seconds, 12 to 400].",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the images.")
@click.option(
    "--agreement", default=64, show_default=True, metavar="IMAGES",
    help="Synthetic images on which answers are compared with the float model's; 0: none.",
)  # fmt: skip
@click.option(
    "--footprint/--no-footprint", default=True, show_default=True,
    help="Memory, loading and first calls: a process a variant.",
)  # fmt: skip
@click.option("--samples", is_flag=True, help="Keep the time of every call in the JSON.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="FILE",
    help="Where the JSON goes [FOLDER/bench.json].",
)  # fmt: skip
@click.option(
    "--csv", "csv_file", type=click.Path(path_type=Path), help="Write the rows here, too."
)
@click.option(
    "--md", "md_file", type=click.Path(path_type=Path), help="Write the page as Markdown."
)
@click.option(
    "--html", "html_file", type=click.Path(path_type=Path), help="Write the page as HTML."
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="An earlier JSON to compare with.",
)
@click.option(
    "--fail-slower",
    metavar="PERCENT",
    help="Exit with 5 if FOLDER is so much slower than --against, beyond chance within the two runs, or is not in it.",
)
@click.option(
    "--min-speedup",
    type=float,
    help="Exit with 5 if FOLDER is not so many times as fast as the best float.",
)
def command(session: Session, target: str, **options: Any) -> Result:
    """Time FOLDER against the float model it came from and against other int8 runtimes, in alternating rounds.

    The report says what each takes, how sure that is, where the time of FOLDER goes layer by layer, and why. With a
    float MODEL, only the float variants and rivals run, with random weights: values do not change the time. Lists are
    separated by commas: --batch 1,8 --baseline fp32-compile,bf16-compile. FOLDER/bench.json is left as it is if it is
    what --against names.
    """
    from qvit import latency

    folder = as_folder(target)
    if folder is None:
        _check_float(target, options)
    request = latency.Request(
        baselines=tuple(_split(options["baseline"])),
        backends=tuple(_split("auto" if options["backend"] is None else options["backend"])),
        batches=tuple(map(_batch_size, _split(options["batch"]))),
        rounds=options["rounds"],
        device=options["device"],
        seed=options["seed"],
        footprint=options["footprint"],
        agreement=options["agreement"],
        samples=options["samples"],
    )
    gates = {"fail_slower": _percentage(options), "min_speedup": _least(options["min_speedup"])}
    files = _check_files(options)
    subject = latency.Subject(model=target) if folder is None else latency.Subject.of_folder(folder)
    before = None
    if options["against"] is not None and folder is not None:
        before = _read_report(options["against"], subject, request.device)
    found = latency.bench(subject, request, progress=session.progress)
    if before is not None:
        found["against"] = latency.compare_reports(found, before)
    _write(found, files, folder, options["against"])
    return Result(found, _render(found), latency.find_missed_gate(found, **gates))


def _check_float(target: str, options: Mapping[str, Any]) -> None:
    """What only a folder has is refused, and not passed over."""
    for name in ("backend", "against", "fail_slower", "min_speedup"):
        if options[name] is not None:
            raise UsageError(
                f"--{name.replace('_', '-')} is about a quantized folder, and {target} is a float model; "
                f"`qvit quantize {target}` writes a folder"
            )
    if options["baseline"] == "none":
        raise UsageError(
            f"{target} is a float model, and without baselines nothing is left to time; `qvit quantize {target}` "
            "writes a folder"
        )


def _check_files(options: Mapping[str, Any]) -> dict[str, Path | None]:
    """Where each form of the report goes; a place that cannot be written to is refused before anything is measured."""
    files = {kind: options[f"{kind}_file"] for kind in _FORMATS[1:]} | {"json": options["out"]}
    for kind, path in files.items():
        if path is not None:
            option = "-o" if kind == "json" else f"--{kind}"
            check_file(option, path)
            if _is_same(path, options["against"]):
                raise UsageError(f"{option} {path} would overwrite what --against compares with")
    return files


def _is_same(path: Path, other: Path | None) -> bool:
    return other is not None and path.resolve() == other.resolve()


def _percentage(options: Mapping[str, Any]) -> float | None:
    """--fail-slower as a share."""
    text = options["fail_slower"]
    if text is None:
        return None
    if options["against"] is None:
        raise UsageError("--fail-slower needs the earlier report: --against bench.json")
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = math.nan
    if not math.isfinite(share):
        raise UsageError(f"--fail-slower {text!r}: expected percent, such as 3%")
    return share


def _least(speedup: float | None) -> float | None:
    if speedup is not None and not (math.isfinite(speedup) and speedup > 0):
        raise UsageError(f"--min-speedup {speedup}: expected a ratio above 0, such as 1.2")
    return speedup


def _read_report(path: Path, subject: Any, device: str) -> Any:
    """An earlier report of the same model; anything else is refused before hours are spent on the new one."""
    from qvit import latency
    from qvit.deployment import checkpoint

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--against {path} cannot be read: {error}") from error
    scheme = checkpoint.describe(subject.folder)["scheme"]
    latency.check_earlier(found, model=subject.source.timm_name, scheme=scheme, device=device)
    return found


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _batch_size(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(
            f"--batch {text!r}: expected numbers separated by commas, such as 1,8"
        ) from None


def _write(
    found: dict[str, Any],
    files: Mapping[str, Path | None],
    folder: Path | None,
    against: Path | None,
) -> None:
    """The JSON, beside the model unless another place was named, and whatever else was asked for.

    What it was compared with stays: a slower model would become the measure of the next one.
    """
    from qvit import latency
    from qvit.cli.kept import keep_beside
    from qvit.deployment import checkpoint
    from qvit.report import describe_latency

    if files["json"] is not None:
        checkpoint.write_json(files["json"], found)
    elif folder is not None and _is_same(folder / LATENCY, against):
        logger.warning("%s stays what it was; -o FILE keeps the new report", against)
    elif folder is not None:
        keep_beside(folder, LATENCY, found)
    if files["csv"] is not None:
        write_text(files["csv"], latency.to_csv(found))
    for kind in ("md", "html"):
        path = files[kind]
        if path is not None:
            write_text(path, describe_latency(found)[kind])


def _render(found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    rows = [
        row
        | row["latency_ms"]
        | {
            "speedup": _describe_speedup(row["speedup_vs"].get(BEST_FLOAT)),
            "device_p50": None if row["device_ms"] is None else row["device_ms"]["p50"],
        }
        for row in found["rows"]
    ]
    title = " ".join(filter(None, [found["resolved_name"], found["scheme"]]))
    place = machine["gpu"] if not found["device"].startswith("cpu") else machine["cpu"]
    shown = {
        key: head for key, head in _COLUMNS.items() if any(row.get(key) is not None for row in rows)
    }
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    lines = [
        f"{title} on {place}, {threads}, torch {machine['torch']}",
        "",
        tabulate(rows, shown),
        "",
        *found["verdict"],
        *(f"Mind: {warning}." for warning in found["warnings"]),
    ]
    for item in found["left_out"]:
        advice = f"; {item['command']}" if item["command"] else ""
        lines.append(f"left out: {item['variant']}: {item['reason']}{advice}")
    return "\n".join([*lines, *_render_against(found.get("against"))])


def _describe_speedup(ratio: Mapping[str, Any] | None) -> str | None:
    """With a star where another run may find another."""
    if ratio is None:
        return None
    return f"{ratio['ratio']:.2f}{'' if ratio['steady'] else ' *'}"


def _render_against(against: Mapping[str, Any] | None) -> list[str]:
    if against is None:
        return []
    if not against["rows"]:
        return [
            "",
            "against the earlier report: no variant and batch size in common, nothing to compare",
        ]
    taken_out = all(drift is not None for drift in against["drift"].values())
    drift = (
        "the drift of the float models taken out"
        if taken_out
        else "without a float model in common: drift of the machine is not taken out"
    )
    lines = ["", f"against the earlier report, {drift}:"]
    if not against["same_machine"]:
        lines.append(
            "another machine, or another torch: only what is left of the ratios can be compared"
        )
    lines += [
        f"  {row['variant']}, batch {row['batch']}: {100 * abs(row['slower']):.1f} % "
        f"{'slower' if row['slower'] > 0 else 'faster'}"
        for row in against["rows"]
        if is_own(row["variant"])
    ]
    slower = [layer for layer in against["layers"] if layer["name"] in against["slower_layers"]]
    lines += [
        f"  slower layer: {layer['name']} (batch {layer['batch']}), {100 * layer['slower']:.0f} %"
        for layer in slower
        if layer["slower"] > 0.1
    ]
    return lines
