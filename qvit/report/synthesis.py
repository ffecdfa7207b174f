"""The report of a synthesis folder: which sections it has, and what stands above them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qvit import __version__
from qvit.report.evidence import Evidence
from qvit.report.page import Key, Page, Section
from qvit.report.sections.activations import show_activations
from qvit.report.sections.attention import show_attention
from qvit.report.sections.classes import show_classes
from qvit.report.sections.images import show_images
from qvit.report.sections.measures import (
    ENTROPY,
    MEASURES,
    SIMILARITY,
    close_gap,
    compare_measures,
    describe_gap,
)
from qvit.report.sections.progress import show_progress
from qvit.report.sections.run import list_facts, state_privacy
from qvit.report.sections.training import show_training
from qvit.report.wording import duration, percent

# In reading order. A new section is a function more in this list.
SECTIONS: tuple[Callable[[Evidence], Section | None], ...] = (
    show_images,
    compare_measures,
    show_attention,
    show_progress,
    show_classes,
    show_activations,
    show_training,
    state_privacy,
    list_facts,
)


def make_page(evidence: Evidence) -> Page:
    """The page of one synthesis run."""
    manifest = evidence.run.manifest
    sections = [section for make in SECTIONS if (section := make(evidence)) is not None]
    count = manifest["counts"]["images"]
    made = "images synthesized from" if manifest["privacy"]["data_free"] else "images given to"
    return Page(
        title=f"{count:,} {made} {manifest['model']['name']}",
        subtitle=f"Method {manifest['method']}, seed {manifest['seed']}. {manifest['privacy']['statement']}",
        keys=[*_keys(evidence, manifest)],
        sections=sections,
        footer=f"Written by qvit {__version__} from {Path(evidence.run.path).name}. Everything on this page is in this"
        " one file; it loads nothing.",
    )


def _keys(evidence: Evidence, manifest: Mapping[str, Any]) -> list[Key]:
    seen = evidence.synthetic
    keys = []
    for name in (SIMILARITY, ENTROPY):
        if name not in seen.measures:
            continue
        noise = MEASURES[name].write(evidence.noise.measures[name])
        detail = f"noise {noise}"
        if evidence.real is not None:
            detail += f", real {MEASURES[name].write(evidence.real.measures[name])}"
            gap = close_gap(evidence, name)
            detail += f": {describe_gap(gap)}" if gap is not None else ""
        keys.append(Key(MEASURES[name].title, MEASURES[name].write(seen.measures[name]), detail))
    if evidence.hits is not None:
        hit = f"{evidence.hits} of {seen.count} images"
        keys.append(Key(f"Class as {evidence.wish}", percent(evidence.hits / seen.count), hit))
    seconds = evidence.run.seconds
    per_image = seconds / manifest["counts"]["images"]
    keys.append(Key("Time", duration(seconds), f"{per_image:.3g} s an image"))
    return keys
