"""Which layers low bits hurt."""

from collections.abc import Mapping, Sequence
from typing import Any

from qvit.report.charts import draw_bars
from qvit.report.page import OURS, Block, Figure, Paragraph, Section, Table
from qvit.report.records import Folder
from qvit.report.wording import percent, shortly

_SHOWN = 24


def show_sensitivity(folder: Folder) -> Section | None:
    """The divergence that each layer alone brings, of sense.json; None without it."""
    return None if folder.sensitivity is None else draw_sensitivity(folder.sensitivity)


def draw_sensitivity(found: Mapping[str, Any]) -> Section:
    """The same of a result of `qvit sense`."""
    layers = sorted(found["layers"], key=lambda layer: -layer["kl_alone"])
    bars = [
        (layer["name"].replace("blocks.", ""), layer["kl_alone"], None) for layer in layers[:_SHOWN]
    ]
    svg = draw_bars(bars, role=OURS, value_name="nats", least=0.0, width=560)
    first = layers[0]
    title = "KL from the float model, in nats, with this layer alone in low bits"
    figure = Figure(
        title, svg, f"Most sensitive: {first['name']}, {shortly(first['kl_alone'])} nats."
    )
    rows = [
        (
            layer["name"],
            shortly(layer["kl_alone"]),
            percent(layer["agreement_alone"] / 100),
            shortly(layer["kl_gain"]),
        )
        for layer in layers
    ]
    table = Table(
        ("layer", "KL alone", "same top-1 alone", "KL won by 8 bits"),
        rows,
        frozenset({1, 2, 3}),
        folded="Every layer",
    )
    blocks: list[Block] = [figure, table]
    if found["exclude"]:
        patterns = " ".join(f"--exclude {name}" for name in found["exclude"])
        blocks.append(
            Paragraph(
                f"Keeping {_count(found['exclude'])} at 8 bits takes the divergence from {shortly(found['kl'])} to "
                f"{shortly(found['kl_excluded'])} nats on these images: qvit quantize ... {patterns}"
            )
        )
    lead = (
        f"Low bits in {first['name']} alone move the answers most. Measured at {found['scheme']} on {found['images']} "
        f"{found['pictures']}: all layers together {shortly(found['kl'])} nats."
    )
    return Section("sensitivity", "Sensitivity", lead, blocks, dict(found))


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} layer{'s' if len(names) > 1 else ''}"
