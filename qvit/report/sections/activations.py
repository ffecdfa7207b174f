"""Whether the activations of synthetic images stay where those of real ones are."""

from qvit.report.charts import Series, draw_lines
from qvit.report.evidence import Evidence
from qvit.report.page import NOISE, REAL, SYNTHETIC, Figure, Notice, Panels, Section, Table
from qvit.report.ranges import measure_overlap
from qvit.report.wording import percent

_KINDS = {
    "attn.qkv": "Input of qkv",
    "attn.proj": "Input of proj",
    "mlp.fc1": "Input of fc1",
    "mlp.fc2": "Input of fc2",
}


def show_activations(evidence: Evidence) -> Section:
    """The overlap of activation ranges per layer, with real images, or with noise where none are given."""
    real, word = evidence.real, evidence.label(SYNTHETIC)
    if real is not None:
        lines = {
            SYNTHETIC: measure_overlap(evidence.synthetic.ranges, real.ranges),
            NOISE: measure_overlap(evidence.noise.ranges, real.ranges),
        }
        names = {SYNTHETIC: f"{word} with real", NOISE: "noise with real"}
        lead = (
            f"The ranges of activations in {word} images overlap with those of real images by"
            f" {percent(_mean(lines[SYNTHETIC]))} on average; those of noise by {percent(_mean(lines[NOISE]))}."
        )
    else:
        lines = {SYNTHETIC: measure_overlap(evidence.synthetic.ranges, evidence.noise.ranges)}
        names = {SYNTHETIC: f"{word} with noise"}
        lead = (
            f"The ranges of activations in {word} images overlap with those of noise by"
            f" {percent(_mean(lines[SYNTHETIC]))} on average: the less, the more the images do that noise does not."
        )
    legend = [(role, names[role]) for role in lines]
    figures = [_panel(kind, title, lines, names) for kind, title in _KINDS.items()]
    caption = (
        "For every input channel: what the two ranges, least to greatest value, share over what they cover together;"
        f" the mean over channels. Each range from {evidence.synthetic.count} images."
    )
    blocks: list[Panels | Notice] = [Panels(figures, caption, legend, _numbers(lines, names))]
    if real is None:
        blocks.append(
            Notice("Give real images with --images PATH to compare with what the model will see.")
        )
    data = {
        f"{role}_{REAL if real is not None else NOISE}": dict(found)
        for role, found in lines.items()
    }
    return Section("activations", "Activation ranges", lead, blocks, data)


def _panel(
    kind: str, title: str, lines: dict[str, dict[str, float]], names: dict[str, str]
) -> Figure:
    series, words = [], []
    for role, found in reversed(lines.items()):
        points = [
            (float(name.split(".")[1]) + 1, value)
            for name, value in found.items()
            if name.startswith("blocks.") and name.endswith(kind)
        ]
        series.append(Series(names[role], role, points, marked=True))
        words.append(
            f"{names[role]} {min(v for _, v in points):.2f} to {max(v for _, v in points):.2f}"
        )
    svg = draw_lines(series, x_label="block", y_range=(0.0, 1.0), whole_x=True, size=(470, 180))
    return Figure(title, svg, "; ".join(reversed(words)) + ".")


def _numbers(lines: dict[str, dict[str, float]], names: dict[str, str]) -> Table:
    layers = list(next(iter(lines.values())))
    rows = [(layer, *(f"{found[layer]:.3f}" for found in lines.values())) for layer in layers]
    numeric = frozenset(range(1, 1 + len(lines)))
    return Table(("layer", *(names[role] for role in lines)), rows, numeric, folded="Every layer")


def _mean(found: dict[str, float]) -> float:
    return sum(found.values()) / len(found)
