"""How accurate the model is, beside the float one."""

from qvit.report.charts import draw_bars
from qvit.report.page import FLOAT, OURS, Block, Figure, Section, Table
from qvit.report.records import Folder
from qvit.report.wording import shortly


def show_accuracy(folder: Folder) -> Section | None:
    """Top-1, top-5, agreement and divergence of eval.json; None without it."""
    found = folder.evaluation
    if found is None:
        return None
    low, high = found["top1_interval"]
    fp32 = found["float"]["top1"]
    rows = [
        ("top-1", f"{found['top1']:.2f} %", f"95 % interval {low:.2f} to {high:.2f}"),
        ("top-5", f"{found['top5']:.2f} %", ""),
    ]
    if fp32 is not None:
        between = found.get("drop_interval")  # eval.json of an earlier version has none
        sure = f" (95 % interval {between[0]:.2f} to {between[1]:.2f})" if between else ""
        rows += [
            (
                "top-1 of the float model",
                f"{fp32:.2f} %",
                f"{fp32 - found['top1']:.2f} points lost{sure}",
            ),
            ("same top-1 as float", f"{found['agreement']:.2f} %", "of the images"),
            ("KL divergence from float", f"{shortly(found['kl'])} nats", "mean over the images"),
        ]
    rows.append(("images", f"{found['images']:,}", found.get("data") or ""))
    if found["skipped"]:
        rows.append(("skipped", str(found["skipped"]), "could not be read"))
    blocks: list[Block] = [_draw(found["top1"], fp32, folder), Table(("", "", ""), rows)]
    lead = f"{found['top1']:.1f} % of {found['images']:,} images are classified correctly"
    if fp32 is not None:
        lead += (
            f", {fp32:.1f} % by the float model; on {found['agreement']:.1f} % both say the same"
        )
    return Section("accuracy", "Accuracy", lead + ".", blocks, dict(found))


def _draw(top1: float, fp32: float | None, folder: Folder) -> Figure:
    bars = [(folder.scheme, top1, None)]
    roles = [OURS]
    if fp32 is not None:
        bars.insert(0, ("float", fp32, None))
        roles.insert(0, FLOAT)
    svg = draw_bars(bars, role=OURS, roles=roles, value_name="%", least=100.0)
    return Figure(
        "Top-1, %", svg, "; ".join(f"{name} {value:.1f} %" for name, value, _ in bars) + "."
    )
