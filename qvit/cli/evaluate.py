"""`qvit eval`: how accurate a folder, or a float model, is on images."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from qvit.cli.kept import keep_evaluation
from qvit.cli.session import Result, Session, verb
from qvit.cli.target import as_folder
from qvit.errors import GateError, UsageError


@verb("eval")
@click.argument("target", metavar="FOLDER|MODEL")
@click.option(
    "--data", required=True, metavar="PATH",
    help="Images: a folder a class, what timm reads, or demo[:COUNT] for rendered ones.",
)  # fmt: skip
@click.option("--class-map", metavar="FILE", help="Class names in index order, as timm's.")
@click.option(
    "--float-weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Float model to compare with [where `qvit quantize` found it].",
)
@click.option(
    "--weights", type=click.Path(path_type=Path), metavar="FILE", help="Weights of a float MODEL."
)
@click.option("-b", "--batch-size", default=32, show_default=True, help="Images at a time.")
@click.option("--limit", type=int, help="Only so many images.")
@click.option("--crop-pct", type=float, help="Override the model's crop fraction.")
@click.option("--crop-mode", help="Override the model's crop mode: center, squash or border.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option(
    "--backend", default="auto", show_default=True, help="auto, triton, cpu or reference."
)
@click.option("--min-top1", type=float, help="Exit with 5 if top-1 is below, in percent.")
@click.option("--max-drop", type=float, help="Exit with 5 if top-1 is further below the float's.")
def command(session: Session, target: str, **options: Any) -> Result:
    """Measure top-1 and top-5 of FOLDER, or of a float MODEL, on labelled images.

    FOLDER is compared with the float model that `qvit quantize` made it from, if that is still
    there and unchanged. The float answers are kept in FOLDER: the next evaluation on the same
    images does not compute them again. So is the result, as eval.json, for `qvit report`; one of all
    images is not replaced by one with --limit.
    """
    for name in ("batch_size", "limit"):
        if options[name] is not None and options[name] < 1:
            raise UsageError(f"--{name.replace('_', '-')} {options[name]}: at least 1 is needed")
    for name in ("min_top1", "max_drop"):
        if options[name] is not None and not math.isfinite(options[name]):
            raise UsageError(
                f"--{name.replace('_', '-')} {options[name]}: expected percentage points"
            )
    folder = as_folder(target)
    if folder is None and options["max_drop"] is not None:
        raise UsageError(
            f"--max-drop: {target} is a float model, and drops from nothing; --min-top1 bounds it"
        )
    if folder is None and options["float_weights"] is not None:
        raise UsageError(f"{target} is a float model: give its weights with --weights")
    if folder is not None and options["weights"] is not None:
        raise UsageError(f"{target} is quantized: name its float model with --float-weights")

    from qvit.evaluation import assessment

    images = assessment.Images(
        data=options["data"],
        class_map=options["class_map"],
        limit=options["limit"],
        crop_pct=options["crop_pct"],
        crop_mode=options["crop_mode"],
        batch_size=options["batch_size"],
    )
    if folder is not None:
        found = assessment.assess_folder(
            folder,
            images,
            float_weights=options["float_weights"],
            device=options["device"],
            backend=options["backend"],
            progress=session.progress,
        )
    else:
        from qvit import zoo

        source = zoo.resolve(target, weights=options["weights"])
        found = assessment.assess_float(
            source, images, device=options["device"], progress=session.progress
        )
    found |= {"data": options["data"], "limit": options["limit"]}
    if folder is not None:
        keep_evaluation(folder, found)
    return Result(found, _render(found), _find_missed_gate(found, options))


def _render(found: Mapping[str, Any]) -> str:
    low, high = found["top1_interval"]
    lines = [
        f"{found['model']}{' ' + found['scheme'] if found['scheme'] else ''}, "
        f"{found['images']} images" + (f", {found['skipped']} skipped" if found["skipped"] else ""),
        f"top-1 {found['top1']:.2f} % (95 % interval {low:.2f} to {high:.2f})",
        f"top-5 {found['top5']:.2f} %",
    ]
    if found["float"]["top1"] is not None:
        least, most = found["drop_interval"]
        lines += [
            f"float top-1 {found['float']['top1']:.2f} %",
            f"points lost {found['drop']:.2f} (95 % interval {least:.2f} to {most:.2f})",
            f"same top-1 as float on {found['agreement']:.2f} % of the images",
            f"mean KL to float {found['kl']:.4f} nats",
        ]
    return "\n".join(lines)


def _find_missed_gate(found: Mapping[str, Any], options: Mapping[str, Any]) -> GateError | None:
    top1, lost = found["top1"], found["drop"]
    lowest, drop = options["min_top1"], options["max_drop"]
    if lowest is not None and top1 < lowest:
        return GateError(f"gate not met: top-1 {top1:.2f} % is below --min-top1 {lowest:g}")
    if drop is None:
        return None
    if lost is None:
        return GateError(
            "gate not met: --max-drop needs the float model, which was not found; "
            "name its weights with --float-weights"
        )
    if lost > drop:
        return GateError(
            f"gate not met: top-1 {top1:.2f} % is {lost:.2f} below the float model, "
            f"more than --max-drop {drop:g}"
        )
    return None
