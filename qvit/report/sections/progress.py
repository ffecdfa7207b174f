"""How measures and losses moved over the iterations."""

import math
from collections.abc import Iterator

from qvit.report.charts import Rule, Series, draw_lines
from qvit.report.evidence import Evidence, Trace
from qvit.report.page import NOISE, REAL, SYNTHETIC, Figure, Panels, Section, Table
from qvit.report.sections.measures import ENTROPY, MEASURES, SIMILARITY

_MOST_LINES = 40  # batches drawn each for itself; the mean is over all of them


def show_progress(evidence: Evidence) -> Section | None:
    """Inter-head similarity, patch-similarity entropy and every loss term over the iterations."""
    run = evidence.run
    panels = [
        _panel(MEASURES[name].title, run.measures[name], list(_rules(evidence, name)))
        for name in (SIMILARITY, ENTROPY)
        if _mean_trace(run.measures.get(name, {}))
    ]
    losses = [
        _panel(_title(evidence, name), trace, [])
        for name, trace in run.terms.items()
        if _mean_trace(trace)
    ]
    if not panels and not losses:
        return None
    batches = max(len(trace) for trace in (*run.measures.values(), *run.terms.values()))
    lead = (
        f"{batches} batches; a thin line is one of them, the thick one their mean."
        if batches > 1
        else "One batch."
    )
    legend = [(SYNTHETIC, evidence.label(SYNTHETIC))]
    legend += [
        (r, f"{evidence.label(r)} images, for comparison")
        for r in (REAL, NOISE)
        if panels and _has(evidence, r)
    ]
    blocks = [Panels(panels, "", legend, None)] if panels else []
    if losses:
        caption = "The loss is the sum of its terms, each times its weight; terms are drawn before they are weighted."
        blocks.append(Panels(losses, caption, [], _numbers(evidence)))
    data = {
        "measures": {name: _mean_trace(trace) for name, trace in run.measures.items()},
        "losses": {name: _mean_trace(trace) for name, trace in run.terms.items()},
    }
    return Section("progress", "Over the iterations", lead, blocks, data)


def _title(evidence: Evidence, term: str) -> str:
    weight = evidence.run.manifest["settings"].get(term)
    return (
        "Loss"
        if term == "loss"
        else f"Term: {term}" + (f", weight {weight:g}" if weight is not None else "")
    )


def _has(evidence: Evidence, role: str) -> bool:
    return role == NOISE or evidence.real is not None


def _rules(evidence: Evidence, name: str) -> Iterator[Rule]:
    for each in (evidence.real, evidence.noise):
        if each is not None and math.isfinite(each.measures.get(name, math.nan)):
            yield Rule(f"{evidence.label(each.role)} images", each.role, each.measures[name])


def _panel(title: str, trace: Trace, rules: list[Rule]) -> Figure:
    mean = [(float(i), value) for i, value in _mean_trace(trace)]
    series = []
    if len(trace) > 1:
        drawn = list(trace.items())[:: -(-len(trace) // _MOST_LINES)]
        series = [
            Series(f"batch {batch}", SYNTHETIC, [(float(i), v) for i, v in points], faint=True)
            for batch, points in drawn
        ]
    series.append(Series("mean of the batches", SYNTHETIC, mean, marked=len(mean) <= 3))
    svg = draw_lines(series, x_label="iteration", rules=rules, whole_x=True)
    alt = f"From {mean[0][1]:.4g} to {mean[-1][1]:.4g}."
    alt += "".join(f" {rule.name.capitalize()}: {rule.value:.4g}." for rule in rules)
    return Figure(title, svg, alt)


def _mean_trace(trace: Trace) -> list[list[float]]:
    """The mean over batches at every iteration that all of them have."""
    rows = [dict(points) for points in trace.values()]
    if not rows:
        return []
    common = sorted(set.intersection(*(set(row) for row in rows)))
    return [[i, sum(row[i] for row in rows) / len(rows)] for i in common]


def _numbers(evidence: Evidence) -> Table:
    rows = []
    for name, trace in evidence.run.terms.items():
        mean = _mean_trace(trace)
        if not mean:
            continue
        rows.append(
            (name, f"{mean[0][1]:.4g}", f"{mean[len(mean) // 2][1]:.4g}", f"{mean[-1][1]:.4g}")
        )
    columns = ("loss term", "first", "halfway", "last")
    return Table(columns, rows, frozenset({1, 2, 3}), folded="First and last values")
