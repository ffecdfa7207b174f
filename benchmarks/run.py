"""Run a suite of measurements: python benchmarks/run.py --suite accuracy [--out DIR]."""

from importlib import import_module
from pathlib import Path

import click
from cells import ROOT, machine_name, measure

# A suite is a module with cells() and table().
SUITES = {"accuracy": "accuracy", "cpu-models": "cpu_models"}


@click.command()
@click.option("--suite", type=click.Choice(list(SUITES)), required=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the JSON files.")
def main(suite: str, out: Path | None) -> None:
    """Measure what the output folder does not hold yet, and print a table of all of it."""
    module = import_module(SUITES[suite])
    folder = out or ROOT / "benchmarks" / "results" / machine_name()
    print(module.table(measure(module.cells(), folder)))


if __name__ == "__main__":
    main()
