"""Which classes the teacher sees in the images, and how sure it is."""

import itertools
from collections import Counter

from qvit.report.charts import draw_bars, draw_columns
from qvit.report.evidence import Evidence
from qvit.report.page import SYNTHETIC, Figure, Panels, Section, Table

_SHOWN = 24  # classes; the others are summed up in words
_BINS = 10


def show_classes(evidence: Evidence) -> Section | None:
    """The teacher's class histogram, and the histogram of its confidence."""
    if not evidence.config.num_classes:
        return None
    seen = evidence.synthetic
    counts = Counter(seen.predicted)
    wanted = Counter(seen.wanted or ())
    total = evidence.config.num_classes
    lead = f"The teacher sees {len(counts)} of its {total} classes in {seen.count} images"
    lead += f"; {len(wanted)} were {evidence.wish}." if wanted else "."
    legend = [(SYNTHETIC, "seen by the teacher")] + ([("mark", evidence.wish)] if wanted else [])
    panels = [_histogram(evidence, counts, wanted), _confidence(evidence)]
    caption = (
        "Confidence: the share of images by the probability of the class that the teacher sees."
    )
    legend += [
        (each.role, evidence.label(each.role)) for each in evidence.observations if each is not seen
    ]
    data = {
        "classes": total,
        "seen": {str(index): count for index, count in sorted(counts.items())},
        evidence.wish.replace(" ", "_"): {
            str(index): count for index, count in sorted(wanted.items())
        },
    }
    numbers = _numbers(evidence, counts, wanted)
    return Section("classes", "Classes", lead, [Panels(panels, caption, legend, numbers)], data)


def _ranked(evidence: Evidence, counts: Counter[int], wanted: Counter[int]) -> list[int]:
    """Few classes all, in their order; of many, those seen or asked for most often."""
    total = evidence.config.num_classes
    if total <= _SHOWN:
        return list(range(total))
    return sorted(counts | wanted, key=lambda i: (-counts[i], -wanted[i], i))


def _histogram(evidence: Evidence, counts: Counter[int], wanted: Counter[int]) -> Figure:
    ranked = _ranked(evidence, counts, wanted)
    rows = [
        (evidence.name_class(i), float(counts[i]), float(wanted[i]) if wanted else None)
        for i in ranked[:_SHOWN]
    ]
    svg = draw_bars(rows, role=SYNTHETIC, value_name="seen", mark_name=evidence.wish)
    first, count = max(counts.items(), key=lambda item: (item[1], -item[0]))
    alt = f"Images by class; most often {evidence.name_class(first)}, {count} times."
    if len(ranked) > _SHOWN:
        alt += f" {len(ranked) - _SHOWN} further classes are not drawn."
        title = f"Images by class, the {_SHOWN} most frequent"
    else:
        title = "Images by class"
    return Figure(title, svg, alt)


def _confidence(evidence: Evidence) -> Figure:
    groups = []
    edges = [i / _BINS for i in range(_BINS + 1)]
    for low, high in itertools.pairwise(edges):
        columns = []
        for each in evidence.observations:
            inside = sum(low <= c < high or (high == 1 and c >= 1) for c in each.confidence)
            columns.append((each.role, evidence.label(each.role), 100 * inside / each.count))
        groups.append((f"{100 * low:.0f}", columns))
    svg = draw_columns(groups, x_label="probability of the class it sees, in % from")
    means = ", ".join(
        f"{evidence.label(each.role)} {100 * sum(each.confidence) / each.count:.0f} %"
        for each in evidence.observations
    )
    return Figure("The teacher's confidence", svg, f"Mean confidence: {means}.")


def _numbers(evidence: Evidence, counts: Counter[int], wanted: Counter[int]) -> Table:
    columns = ["index", "class", "seen", *([evidence.wish] if wanted else [])]
    rows = [
        (
            str(i),
            evidence.class_names.get(i, ""),
            str(counts[i]),
            *([str(wanted[i])] if wanted else []),
        )
        for i in _ranked(evidence, counts, wanted)
    ]
    return Table(columns, rows, frozenset({0, 2, 3}), folded="Every class")
