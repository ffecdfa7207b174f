"""What a latency report was measured on, and how."""

from collections.abc import Iterator, Mapping
from typing import Any

from qvit.report.page import Section, Table
from qvit.report.wording import plain, shortly, words

MEASURED = "machine"  # the name of the section


def list_circumstances(report: Mapping[str, Any]) -> Section:
    """Machine, versions, command, and the rates that floors are made of."""
    rates = report["rates"]
    copies = [
        (f"{size / 1e6:.3g} MB", f"{shortly(rate / 1e9)} GB/s") for size, rate in rates["copies"]
    ]
    products = [
        (name, f"{shortly(rate / 1e9)} Gop/s") for name, rate in rates["operations"].items()
    ]
    blocks = [
        Table(("", ""), list(_facts(report))),
        Table(("copy of", "rate"), copies, frozenset({0, 1}), folded="Rates of this machine"),
        Table(("product in", "rate"), products, frozenset({1}), folded="Rates of matrix products"),
    ]
    lead = (
        "Absolute times move with the machine; ratios are taken within each round, and move less."
    )
    return Section(MEASURED, "How it was measured", lead, blocks)


def _facts(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in report["machine"].items():
        if value not in (None, [], ""):
            yield (
                words(name).removesuffix(" bytes"),
                f"{value / 2**30:.1f} GiB" if name == "memory_bytes" else plain(value),
            )
    if report["gpu"]:
        yield "card", plain(report["gpu"])
    yield "input", " x ".join(map(str, report["input_size"]))
    yield "rounds", str(report["rounds"])
    yield "versions", plain({k: v for k, v in report["versions"].items() if v is not None})
    yield "command", report["command"]
    yield "created", report["created"]
