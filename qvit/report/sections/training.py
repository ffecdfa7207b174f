"""What a student learned from the images: its losses by step, and how it does on images that it was not trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

from qvit.report.charts import Series, draw_lines
from qvit.report.evidence import Evidence
from qvit.report.page import SYNTHETIC, Figure, Panels, Section, Table

# Names in the lines of a training log, and what they are called; other terms go by their own.
_TITLES = {
    "loss": "Loss",
    "kl": "Term: KL divergence",
    "changed": "Share of integers changed by a step",
    "plain_changed": "Share that a plain step would have changed",
    "least_changed": "Share in the weight with the fewest",
    "alpha": "Factor of a step",
}
_UNDRAWN = {"step", "lr", "share", "capped", "capped_steps", "skipped"}
_HELD_OUT = {
    "agreement": "Agreement with the float model, percent",
    "kl": "KL divergence to it, nats",
}


def show_training(evidence: Evidence) -> Section | None:
    """Losses by step, agreement and KL by epoch; None where nothing was trained on these images."""
    steps = [line for line in evidence.training if "step" in line]
    epochs = [line for line in evidence.training if "epoch" in line]
    if not steps:
        return None
    names = [
        name for name in dict.fromkeys(n for line in steps for n in line) if name not in _UNDRAWN
    ]
    traces = {name: _trace(steps, "step", name) for name in names}
    held_out = {name: _trace(epochs, "epoch", name) for name in _HELD_OUT}
    blocks = []
    drawn = [_panel(_HELD_OUT[n], points, "epoch") for n, points in held_out.items() if points]
    if drawn:
        blocks.append(
            Panels(
                drawn, "On images of the same kind that the student is not trained on.", [], None
            )
        )
    losses = [
        _panel(_TITLES.get(n, f"Term: {n}"), points, "step")
        for n, points in traces.items()
        if points
    ]
    caption = "The loss is the sum of its terms, each times its weight; terms are drawn before they are weighted."
    blocks.append(Panels(losses, caption, [], _numbers(traces)))
    return Section(
        "training",
        "What the student learned",
        _lead(steps, held_out["agreement"]),
        blocks,
        {"steps": traces, "held_out": held_out},
    )


def _trace(lines: Sequence[Mapping[str, Any]], axis: str, name: str) -> list[list[float]]:
    """Pairs of step or epoch and value; a value that was not finite is null in the log, and left out."""
    return [[line[axis], line[name]] for line in lines if line.get(name) is not None]


def _panel(title: str, points: Sequence[Sequence[float]], axis: str) -> Figure:
    pairs = [(float(x), y) for x, y in points]
    series = [Series(title, SYNTHETIC, pairs, marked=len(pairs) <= 3)]
    svg = draw_lines(series, x_label=axis, whole_x=True)
    return Figure(title, svg, f"From {pairs[0][1]:.4g} to {pairs[-1][1]:.4g}.")


def _lead(steps: Sequence[Mapping[str, Any]], agreement: Sequence[Sequence[float]]) -> str:
    text = f"A low-bit student was trained after the float model on these images, {steps[-1]['step'] + 1} steps so far."
    skipped = sum("skipped" in line for line in steps)
    if skipped:
        text += f" {skipped} were skipped, for a loss or gradient that was not finite."
    capped = max((line.get("capped_steps") or 0 for line in steps), default=0)
    if capped:
        text += f" In {capped:.0f} the factor of a weight's step was the largest that is allowed, and not enough."
    if agreement:
        first, last = agreement[0][1], agreement[-1][1]
        text += (
            f" It agreed with it on {first:.4g} % of the images kept out, and then on {last:.4g} %."
        )
    return text


def _numbers(traces: Mapping[str, Sequence[Sequence[float]]]) -> Table:
    rows = [
        (name, f"{points[0][1]:.4g}", f"{points[len(points) // 2][1]:.4g}", f"{points[-1][1]:.4g}")
        for name, points in traces.items()
        if points
    ]
    columns = ("of a step", "first", "halfway", "last")
    return Table(columns, rows, frozenset({1, 2, 3}), folded="First and last values")
