"""The picture of a search: KL from the float model against size, BitOps and latency, one panel each."""

from collections.abc import Mapping
from typing import Any

from qvit.report.charts import Rule, Series, draw_lines

_PANELS = {
    "size": ("MB", 1e-6),
    "bitops": ("G BitOps an image", 1e-9),
    "latency": ("ms a pass", 1e3),
}
_SIZE = (470, 230)
_TITLE = 26
# The page's roles, for a picture that stands alone
_STYLE = (
    "text{font-family:system-ui,sans-serif;fill:#52514e}.grid{stroke:#e1e0d9}.line{fill:none;stroke-width:2;stroke:#2a78d6}"
    ".faint{opacity:.35}.dot{fill:#2a78d6}.rule{stroke:#52514e;stroke-dasharray:4 3}.head{font-weight:600}"
)


def draw_frontier(found: Mapping[str, Any]) -> str:
    """SVG of what `qvit search` found; a panel shows the points that were found under limits on its cost."""
    panels = []
    for index, (name, (unit, factor)) in enumerate(_PANELS.items()):
        points = sorted(
            (point[name] * factor, point["kl"])
            for point in found["points"]
            if point["limited"] == name
        )
        most = found["max_kl"]
        rules = [] if most is None else [Rule("--max-kl", "own", most)]
        label = unit
        if name == "latency":
            label += f" ({found['latency']['known']}, {found['latency']['on']})"
        chart = draw_lines(
            [Series(name, "own", points, marked=True)], x_label=label, rules=rules, size=_SIZE
        )
        y = index * (_SIZE[1] + _TITLE)
        panels.append(
            f'<text class="head" x="8" y="{y + 18}" font-size="13">KL, nats, by {name}</text>'
        )
        panels.append(
            chart.replace(
                "<svg ", f'<svg y="{y + _TITLE}" width="{_SIZE[0]}" height="{_SIZE[1]}" ', 1
            )
        )
    height = len(_PANELS) * (_SIZE[1] + _TITLE)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SIZE[0]} {height}" width="{_SIZE[0]}" '
        f'height="{height}"><style>{_STYLE}</style><rect width="100%" height="100%" fill="#ffffff"/>'
        + "".join(panels)
        + "</svg>\n"
    )
