"""Run a suite of measurements: python benchmarks/run.py --suite accuracy [--out DIR].

Needs the source tree and what is installed; the packages are found in the tree.
"""

import os
import sys
import time
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import Any

_STARTED = time.monotonic()
_ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(_ROOT), str(_ROOT / "kernels")]

import click  # noqa: E402 - after the tree is on the path, as for all that comes later

# A suite is a module with cells() and table(), measured a file a cell, ...
SUITES = {
    "accuracy": "accuracy",
    "budgets": "budgets",
    "cpu-breakdown": "cpu_breakdown",
    "cpu-footprint": "cpu_footprint",
    "cpu-models": "cpu_models",
    "curve": "curve",
    "ablations": "ablations",
    "decisions": "decisions",
    "image-worth": "image_worth",
    "roundings": "roundings",
    "synthesis": "synthesis",
    "psaq-speed": "psaq_speed",
}
# ... or a module with run(session), which keeps one file and minds the clock.
GPU_SUITES = {
    "gpu-check": "gpu.check",
    "gpu-kernels": "gpu.kernels",
    "gpu-models": "gpu.models",
    "gpu-tune": "gpu.tuner",
}
# A call is to end within 8 minutes, however long its last cell takes.
_SECONDS = 420.0


@click.command()
@click.option("--suite", type=click.Choice([*SUITES, *GPU_SUITES]), required=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the JSON files.")
@click.option("--only", metavar="PATTERN", help="Of the suite's cells those so named: '*-w3a3-*'.")
@click.option("--dry-run", is_flag=True, help="GPU suites: tiny, on the CPU, in the interpreter.")
@click.option("--seconds", default=_SECONDS, show_default=True, help="GPU suites: stop by then.")
def main(suite: str, out: Path | None, only: str | None, dry_run: bool, seconds: float) -> None:
    """Measure what the output folder does not hold yet, and print a table of all of it."""
    if suite in GPU_SUITES:
        if only is not None:
            raise click.UsageError("--only chooses cells, and the suites that need a GPU have none")
        sys.exit(_run_on_gpu(GPU_SUITES[suite], out, dry_run, seconds))
    if dry_run:
        raise click.UsageError("--dry-run belongs to the suites that need a GPU")
    cells: Any = import_module("benchmarks.cells")
    module = import_module(f"benchmarks.{SUITES[suite]}")
    folder = out or cells.ROOT / "benchmarks" / "results" / cells.machine_name()
    chosen = (cell for cell in module.cells() if fnmatchcase(cell[0], only or "*"))
    print(module.table(cells.measure(chosen, folder)))


def _run_on_gpu(module: str, out: Path | None, dry_run: bool, seconds: float) -> int:
    # before anything imports triton, which reads it once
    os.environ.pop("TRITON_INTERPRET", None)
    if dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    gpu_session = import_module("benchmarks.gpu.session")
    try:
        session = gpu_session.begin(out, dry=dry_run, seconds=seconds, started=_STARTED)
        return import_module(f"benchmarks.{module}").run(session)
    except gpu_session.RefusalError as refusal:
        print(f"refused: {refusal}", file=sys.stderr)
        return gpu_session.REFUSED


if __name__ == "__main__":
    main()
