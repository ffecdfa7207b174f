"""The page of a latency report, as `qvit bench --html` writes it; the page of a folder has its sections, too."""

from collections.abc import Mapping
from typing import Any

from qvit.report.page import Key, Page, Section
from qvit.report.rendering import render_html, render_markdown
from qvit.report.sections.circumstances import list_circumstances
from qvit.report.sections.comparison import compare_latency
from qvit.report.sections.latency import (
    explain_latency,
    find_own,
    key_of_speed,
    name_time,
    show_latency,
)
from qvit.report.sections.layers import show_layers
from qvit.report.wording import megabytes, percent

# In reading order.
SECTIONS = (show_latency, compare_latency, explain_latency, show_layers, list_circumstances)


def describe_latency(report: Mapping[str, Any]) -> dict[str, str]:
    """The page of a report of `qvit.latency.bench`, as `html` and as `md`."""
    page = make_page(report)
    return {"html": render_html(page), "md": render_markdown(page)}


def make_page(report: Mapping[str, Any]) -> Page:
    """The page of one latency report."""
    title = " ".join(filter(None, (report["resolved_name"], report["scheme"])))
    return Page(
        title=f"How fast {title} is",
        subtitle=report["verdict"][0] if report["verdict"] else "",
        keys=list_keys(report),
        sections=list_sections(report),
        footer=f"Written by qvit {report['versions']['qvit']}, {report['created']}. Everything on this page is in "
        "this one file; it loads nothing.",
    )


def list_sections(report: Mapping[str, Any]) -> list[Section]:
    """Those that the report has something for; the last says how it was measured."""
    return [section for make in SECTIONS if (section := make(report)) is not None]


def list_keys(report: Mapping[str, Any]) -> list[Key]:
    """The numbers at the top."""
    row = find_own(report) or min(
        report["rows"], key=lambda r: (r["batch"], r["latency_ms"]["p50"]), default=None
    )
    if row is None:
        return []
    batch = f"batch {row['batch']}, {row['variant']}"
    keys = [Key("A pass", name_time(row), batch)]
    if (speed := key_of_speed(row)) is not None:
        keys.append(speed)
    if row["weights_mb"] is not None:
        keys.append(
            Key("Weights", megabytes(1e6 * row["weights_mb"]), f"{row['storage_bits']:g} bits each")
        )
    if row["peak_mem_mb"] is not None:
        keys.append(Key("Peak memory", megabytes(1e6 * row["peak_mem_mb"]), batch))
    if row["agree_top1_with_float"] is not None:
        keys.append(
            Key(
                "Same top-1",
                percent(row["agree_top1_with_float"] / 100),
                "as the float model, synthetic pictures",
            )
        )
    return keys
