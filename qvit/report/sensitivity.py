"""The page of what `qvit sense` found."""

from collections.abc import Mapping
from typing import Any

from qvit import __version__
from qvit.report.page import Key, Page
from qvit.report.rendering import render_html, render_markdown
from qvit.report.sections.sensitivity import draw_sensitivity
from qvit.report.wording import percent, shortly


def describe_sensitivity(found: Mapping[str, Any]) -> dict[str, str]:
    """The page of a result of `qvit.sensitivity.measure_sensitivity`, as `html` and as `md`."""
    page = Page(
        title=f"Which layers of {found['model']} low bits hurt",
        subtitle=f"At {found['scheme']}, found without data.",
        keys=[
            Key("KL from float", f"{shortly(found['kl'])} nats", "all layers in low bits"),
            Key("Same top-1", percent(found["agreement"] / 100), "as the float model"),
            Key("With 8 bits", f"{shortly(found['kl_wide'])} nats", "in every layer"),
        ],
        sections=[draw_sensitivity(found)],
        footer=f"Written by qvit {__version__}. Everything on this page is in this one file; it loads nothing.",
    )
    return {"html": render_html(page), "md": render_markdown(page)}
