"""`qvit bench`: how fast a folder runs beside its float model and other people's int8, and why."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from qvit.cli.session import Result, Session, tabulate, verb
from qvit.cli.target import as_folder
from qvit.errors import InputError, UsageError

_COLUMNS = {
    "batch": "batch",
    "variant": "variant",
    "storage_bits": "stored bits",
    "compute_dtype": "computes",
    "p50": "p50 ms",
    "p99": "p99 ms",
    "images_per_s": "images/s",
    "speedup": "x best float",
    "peak_mem_mb": "peak MB",
    "weights_mb": "weights MB",
    "agree_top1_with_float": "same top-1 %",
}
_FORMATS = ("json", "csv", "md", "html")


@verb("bench")
@click.argument("target", metavar="FOLDER|MODEL")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("-b", "--batch", default="1,8", show_default=True, help="Batch sizes.")
@click.option(
    "--baseline", default="all", show_default=True, metavar="all|float|none|NAMES",
    help="What to time beside FOLDER: all that can run here, the float model alone, nothing, or variants by name "
    "(fp32, bf16-compile, torchao-int8, openvino-int8, ...).",
)  # fmt: skip
@click.option(
    "--backend", default="auto", show_default=True, help="Of auto, triton, cpu, reference."
)
@click.option("--rounds", default=12, show_default=True, help="Turns of each variant.")
@click.option("--seed", default=0, show_default=True, help="Seed of the images.")
@click.option(
    "--agreement", default=64, show_default=True, metavar="IMAGES",
    help="Synthetic images on which answers are compared with the float model's; 0: none.",
)  # fmt: skip
@click.option(
    "--footprint/--no-footprint", default=True, show_default=True,
    help="Memory, loading and first calls: a process a variant.",
)  # fmt: skip
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
    help="Exit with 5 if FOLDER is so much slower than --against.",
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
    separated by commas: --batch 1,8 --baseline fp32,bf16-compile.
    """
    from qvit import latency

    request = latency.Request(
        baselines=tuple(_split(options["baseline"])),
        backends=tuple(_split(options["backend"])),
        batches=tuple(map(_batch_size, _split(options["batch"]))),
        rounds=options["rounds"],
        device=options["device"],
        seed=options["seed"],
        footprint=options["footprint"],
        agreement=options["agreement"],
    )
    slower = _percentage(options["fail_slower"], options["against"])
    files = {kind: options[f"{kind}_file"] for kind in _FORMATS[1:]} | {"json": options["out"]}
    for kind, path in files.items():
        if path is not None:
            _check_file("-o" if kind == "json" else f"--{kind}", path)
    before = _read_report(options["against"]) if options["against"] is not None else None
    folder = as_folder(target)
    if folder is None:
        _check_float(target, request)
        subject = latency.Subject(model=target)
    else:
        subject = latency.Subject.of_folder(folder)
    found = latency.bench(subject, request, progress=session.progress)
    if before is not None:
        found["against"] = latency.compare_reports(found, before)
    _write(found, files, folder)
    missed = latency.find_missed_gate(found, fail_slower=slower, min_speedup=options["min_speedup"])
    return Result(found, _render(found), missed)


def _check_float(target: str, request: Any) -> None:
    if not request.variants:
        raise UsageError(
            f"{target} is a float model, and without baselines nothing is left to time; `qvit quantize {target}` "
            "writes a folder"
        )


def _check_file(option: str, path: Path) -> None:
    """Refuse a file that could not be written, before anything is measured for it."""
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be written: {error.strerror}") from error


def _percentage(text: str | None, against: Path | None) -> float | None:
    if text is None:
        return None
    if against is None:
        raise UsageError("--fail-slower needs the earlier report: --against bench.json")
    try:
        return float(text.removesuffix("%")) / 100
    except ValueError:
        raise UsageError(f"--fail-slower {text!r}: expected percent, such as 3%") from None


def _read_report(path: Path) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and "rows" in found:
            return found
    except (OSError, ValueError) as error:
        raise InputError(f"--against {path} cannot be read: {error}") from error
    raise InputError(f"--against {path} is no report of `qvit bench`")


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _batch_size(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(
            f"--batch {text!r}: expected numbers separated by commas, such as 1,8"
        ) from None


def _write(found: dict[str, Any], files: Mapping[str, Path | None], folder: Path | None) -> None:
    """The JSON, beside the model unless another place was named, and whatever else was asked for."""
    from qvit import latency
    from qvit.cli.kept import LATENCY, keep_beside
    from qvit.deployment import checkpoint
    from qvit.report import describe_latency

    if files["json"] is not None:
        checkpoint.write_json(files["json"], found)
    elif folder is not None:
        keep_beside(folder, LATENCY, found)
    if files["csv"] is not None:
        files["csv"].write_text(latency.to_csv(found), encoding="utf-8")
    for kind in ("md", "html"):
        path = files[kind]
        if path is not None:
            path.write_text(describe_latency(found)[kind], encoding="utf-8")


def _render(found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    rows = [
        row | row["latency_ms"] | {"speedup": row["speedup_vs"].get("best_float", {}).get("ratio")}
        for row in found["rows"]
    ]
    title = " ".join(filter(None, [found["model"], found["scheme"]]))
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


def _render_against(against: Mapping[str, Any] | None) -> list[str]:
    if against is None:
        return []
    lines = ["", "against the earlier report, the drift of the float models taken out:"]
    if not against["same_machine"]:
        lines.append(
            "another machine, or another torch: only what is left of the ratios can be compared"
        )
    lines += [
        f"  {row['variant']}, batch {row['batch']}: {100 * abs(row['slower']):.1f} % "
        f"{'slower' if row['slower'] > 0 else 'faster'}"
        for row in against["rows"]
        if row["variant"].startswith("qvit-")
    ]
    slower = [layer for layer in against["layers"] if layer["name"] in against["slower_layers"]]
    lines += [
        f"  slower layer: {layer['name']} (batch {layer['batch']}), {100 * layer['slower']:.0f} %"
        for layer in slower
        if layer["slower"] > 0.1
    ]
    return lines
