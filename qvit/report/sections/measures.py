"""The measures of image sets: what each is called, and how noise, synthetic and real images compare."""

from collections.abc import Mapping
from dataclasses import dataclass

from qvit.report.charts import Series, draw_lines
from qvit.report.evidence import Evidence
from qvit.report.page import SYNTHETIC, Figure, Notice, Panels, Section, Table
from qvit.report.wording import percent


@dataclass(frozen=True, slots=True)
class Measure:
    """One number about a set of images: its name in a heading, how it is written, what it says, and whether the way
    from noise to real images is worth a number.
    """

    title: str
    digits: str
    meaning: str
    graded: bool = True

    def write(self, value: float) -> str:
        """The value as text; `digits` is a format, or "%" for a share."""
        return percent(value) if self.digits == "%" else format(value, self.digits)


# By the names that qvit.synthesis.measures gives them.
SIMILARITY, ENTROPY, CONFIDENCE = "head_distance", "patch_entropy", "confidence"
MEASURES: Mapping[str, Measure] = {
    SIMILARITY: Measure(
        "Inter-head distance",
        ".4f",
        "1 - SSIM² of the attention of two heads, mean over queries, pairs and blocks: 0 where all heads look alike.",
    ),
    ENTROPY: Measure(
        "Patch-similarity entropy",
        ".3f",
        "Differential entropy of the cosines between patch features, mean over blocks: high where patches differ in"
        " how alike they are, as an object differs from its background.",
    ),
    CONFIDENCE: Measure(
        "Confidence",
        "%",
        "Mean probability of the class that the teacher sees. Noise can make it as sure as real images do.",
        graded=False,
    ),
    "total_variation": Measure(
        "Total variation",
        ".3f",
        "Root-mean-square difference of neighbouring pixels, in standard deviations of the training data.",
    ),
}


def compare_measures(evidence: Evidence) -> Section:
    """The table of measures, a column for every set of images."""
    sets = evidence.observations
    known = [name for name in MEASURES if name != CONFIDENCE or evidence.config.num_classes]
    rows = []
    for name in known:
        cells = [MEASURES[name].write(each.measures[name]) for each in sets]
        gap = close_gap(evidence, name) if MEASURES[name].graded else None
        rows.append((MEASURES[name].title, *cells, *([_percent(gap)] if evidence.real else [])))
    columns = ["measure", *(evidence.label(each.role) for each in sets)]
    if evidence.real is not None:
        columns.append("of the gap closed")
    notes = [MEASURES[name].meaning for name in known]
    blocks: list[Table | Panels | Notice] = [
        Table(columns, rows, frozenset(range(1, len(columns))), notes=notes)
    ]
    blocks.append(_by_block(evidence))
    if evidence.real is None:
        blocks.append(
            Notice("Give real images with --images PATH to see how near these come to them.")
        )
    data = {each.role: {name: each.measures[name] for name in known} for each in sets}
    return Section("measures", "Measures", _lead(evidence), blocks, data)


def _by_block(evidence: Evidence) -> Panels:
    figures = []
    for name, key in ((SIMILARITY, "head_distances"), (ENTROPY, "patch_entropies")):
        series = [
            Series(
                evidence.label(each.role),
                each.role,
                [(i + 1.0, value) for i, value in enumerate(each.profiles[key])],
                marked=True,
            )
            for each in evidence.observations
        ]
        ends = "; ".join(f"{s.name} {s.points[0][1]:.4g} to {s.points[-1][1]:.4g}" for s in series)
        svg = draw_lines(series, x_label="block", whole_x=True)
        figures.append(
            Figure(
                f"{MEASURES[name].title} by block",
                svg,
                f"From the first to the last block: {ends}.",
            )
        )
    legend = [(each.role, evidence.label(each.role)) for each in evidence.observations]
    return Panels(figures, "", legend)


def close_gap(evidence: Evidence, name: str) -> float | None:
    """How far synthetic images are on the way from noise (0) to real ones (1); None without real images, or where
    noise measures the same as they do.
    """
    if evidence.real is None:
        return None
    low, high = evidence.noise.measures[name], evidence.real.measures[name]
    return (evidence.synthetic.measures[name] - low) / (high - low) if high != low else None


def describe_gap(share: float) -> str:
    """Where on the way from noise to real images, in words."""
    if share > 1:
        return "past real images"
    if share < 0:
        return "further from real images than noise"
    return f"{percent(share)} of the way"


def _lead(evidence: Evidence) -> str:
    found = f"{evidence.synthetic.count} {evidence.label(SYNTHETIC)} images beside as many of noise"
    if evidence.real is None:
        return f"{found}."
    return (
        f"{found} and {evidence.real.count} real ones from {evidence.real_source}. The last column is the way from"
        " noise (0 %) to real images (100 %); more than 100 % is past them."
    )


def _percent(share: float | None) -> str:
    return "" if share is None else percent(share)
