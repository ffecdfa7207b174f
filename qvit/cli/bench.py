"""`qvit bench`: how fast a folder runs beside its float model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from qvit.cli.session import Result, Session, tabulate, verb
from qvit.cli.target import as_folder
from qvit.errors import UsageError

_COLUMNS = {
    "batch": "batch",
    "variant": "variant",
    "p50": "p50 ms",
    "p90": "p90 ms",
    "p99": "p99 ms",
    "images_per_s": "images/s",
    "speedup_over_fp32": "x fp32",
}


@verb("bench")
@click.argument("target", metavar="FOLDER|MODEL")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("-b", "--batch", default="1,8", show_default=True, help="Batch sizes.")
@click.option(
    "--variants", help="Of fp32, bf16, fp32-compile, bf16-compile, qvit [all but fp32-compile]."
)
@click.option(
    "--backend", default="auto", show_default=True, help="Of auto, triton, cpu, reference."
)
@click.option("--rounds", default=10, show_default=True, help="Turns of each variant.")
@click.option("--seed", default=0, show_default=True, help="Seed of the images and float weights.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Also write the JSON to this file."
)
def command(session: Session, target: str, **options: Any) -> Result:
    """Time FOLDER against the float model it came from, in alternating rounds.

    The float variants have random weights, since values do not change the time. With a float MODEL,
    only those run. Lists are separated by commas: --batch 1,8 --variants fp32,qvit.
    """
    from qvit import latency

    variants = _split(options["variants"]) if options["variants"] else latency.DEFAULT_VARIANTS
    request = latency.Request(
        variants=tuple(variants),
        backends=tuple(_split(options["backend"])),
        batches=tuple(map(_batch_size, _split(options["batch"]))),
        rounds=options["rounds"],
        device=options["device"],
        seed=options["seed"],
    )
    if options["out"] is not None:
        _check_report(options["out"])
    folder = as_folder(target)
    if folder is not None:
        found = latency.compare_folder(folder, request, progress=session.progress)
    else:
        from qvit import zoo

        source = zoo.resolve(target, pretrained=False)
        found = latency.compare_float(source, request, progress=session.progress)
    if options["out"] is not None:
        from qvit.deployment import checkpoint

        checkpoint.write_json(options["out"], found)
    return Result(found, _render(found))


def _check_report(path: Path) -> None:
    """Refuse a report that could not be written, before anything is measured for it."""
    if path.is_dir():
        raise UsageError(f"-o {path} is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"-o {path} cannot be written: {error.strerror}") from error


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _batch_size(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(
            f"--batch {text!r}: expected numbers separated by commas, such as 1,8"
        ) from None


def _render(found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    rows = [row | row["latency_ms"] for row in found["rows"]]
    title = " ".join(filter(None, [found["model"], found["scheme"]]))
    place = machine["gpu"] if not found["device"].startswith("cpu") else machine["cpu"]
    lines = [
        f"{title} on {place}, {machine['threads']} threads, torch {machine['torch']}",
        "",
        tabulate(rows, _COLUMNS),
    ]
    lines += [f"left out: {item['variant']}: {item['reason']}" for item in found["left_out"]]
    return "\n".join(lines)
