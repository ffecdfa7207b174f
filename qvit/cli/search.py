"""`qvit search`: what fewer bits cost a model, and where they cost least, from its weights alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from qvit.cli.session import Result, Session, outline, tabulate, verb
from qvit.cli.target import announce, name_folder
from qvit.errors import UsageError
from qvit.recipe import Recipe, load_recipe, preset_names

_JSON, _PICTURE = "search.json", "frontier.svg"


@verb("search")
@click.argument("model")
@click.option(
    "--max-kl", "--max-drop", "max_kl", type=float, metavar="KL",
    help="For each cost, also find the cheapest that drops so far from the float model at most: KL in nats, such as "
    "0.1. How many points of accuracy that is only labelled images say.",
)  # fmt: skip
@click.option(
    "--w", "--weight-bits", "weight_bits", type=int,
    help="Bits that the recipe is for [4, and 3 under limits for fewer, as quantize --bits auto has it].",
)  # fmt: skip
@click.option("--a", "--act-bits", "act_bits", type=int, help="Likewise, of activations.")
@click.option(
    "--recipe", "recipe_name", default="qvit", metavar="NAME|FILE", help="See quantize [qvit]."
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a recipe field."
)
@click.option("--seed", type=int, help="Seed of everything random [0].")
@click.option("--weights", type=click.Path(path_type=Path), metavar="FILE", help="Float weights.")
@click.option(
    "--on", metavar="CARD", help="Latency of a card such as nvidia-h200, modelled [here, measured]."
)
@click.option(
    "--batch", type=click.IntRange(min=1), default=1, help="Images of a pass, for latency [1]."
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Folder to write [out/MODEL-search]."
)
@click.option("--overwrite", is_flag=True, help="Replace the folder if it exists.")
@click.option("--dry-run", is_flag=True, help="Say what the search would cost, and do nothing.")
def command(session: Session, model: str, **options: Any) -> Result:
    """Find how close to the float model MODEL stays at every size, number of BitOps and latency, without data.

    For each of the three costs, bits of every layer are found under several limits, and KL from the float model is
    measured on synthetic images, with weights at their nearest codes: a proxy, by which allocations compare with each
    other; `qvit quantize` then rounds better, and `qvit eval` says what a model is worth. The folder gets search.json,
    a picture, and a recipe for every point: `qvit quantize MODEL --recipe out/MODEL-search/size-2.yaml`.
    """
    from qvit import zoo
    from qvit.search.latency import HERE, Place
    from qvit.search.run import plan_frontier, trace_frontier

    if options["max_kl"] is not None and not options["max_kl"] > 0:
        raise UsageError(f"--max-kl {options['max_kl']}: expected nats above 0, such as 0.1")
    recipes = _recipes(options)
    place = Place(options["on"] or HERE, options["batch"])
    source = zoo.resolve(model, weights=options["weights"])
    out = (options["out"] or Path("out") / f"{name_folder(model)}-search").resolve()
    _check(out, options["overwrite"])
    if session.verbosity >= 0:
        announce(source)
    if options["dry_run"]:
        plan = {**plan_frontier(source, recipes, place), "out": str(out)}
        return Result(plan, outline(plan))
    found, points = trace_frontier(
        source, recipes, place, options["max_kl"], progress=session.progress
    )
    _write(out, found, points)
    found = {**found, "out": str(out)}
    return Result(found, _render(found))


def _recipes(options: Mapping[str, Any]) -> dict[str, list[Recipe]]:
    """By cost, those that quantize --bits auto would choose from under a limit on it; one alone for all costs where the
    user says which.
    """
    from qvit.search.frontier import COSTS
    from qvit.search.start import preset_starts

    settings = list(options["settings"])
    if options["seed"] is not None:
        settings.append(f"seed={options['seed']}")
    name, weights, inputs = (options[k] for k in ("recipe_name", "weight_bits", "act_bits"))
    if name in preset_names() and weights is None and inputs is None:
        recipes = {cost: preset_starts(name, [cost]) for cost in COSTS}
    else:
        recipe = load_recipe(name, weights or 4, inputs or 4)
        if name in preset_names():  # a file means what it says of layers
            recipe = recipe.with_open_ends()
        recipes = {cost: [recipe] for cost in COSTS}
    return {cost: [each.override(settings) for each in own] for cost, own in recipes.items()}


def _check(out: Path, overwrite: bool) -> None:
    from qvit.deployment.folders import check_target

    check_target(
        out, overwrite=overwrite, is_ours=lambda folder: (folder / _JSON).is_file(), what="a search"
    )


def _write(out: Path, found: Mapping[str, Any], recipes: Mapping[str, Any]) -> None:
    from qvit.deployment.checkpoint import write_json
    from qvit.deployment.folders import written_whole
    from qvit.report.frontier import draw_frontier

    with written_whole(out) as folder:
        write_json(folder / _JSON, dict(found))
        (folder / _PICTURE).write_text(draw_frontier(found), encoding="utf-8")
        for name, recipe in recipes.items():
            (folder / f"{name}.yaml").write_text(recipe.to_yaml(), encoding="utf-8")


def _render(found: Mapping[str, Any]) -> str:
    columns = {
        "recipe": "recipe",
        "bits": "mean bits",
        "kl": "KL",
        "MB": "MB",
        "GBitOps": "G BitOps",
        "ms": "ms",
    }
    rows: Sequence[Mapping[str, Any]] = [
        {
            **point,
            "kl": f"{point['kl']:.4f}",
            "MB": f"{point['size'] / 1e6:.3f}",
            "GBitOps": f"{point['bitops'] / 1e9:.2f}",
            "ms": f"{1000 * point['latency']:.3f}",
        }
        for point in found["points"]
    ]
    latency = found["latency"]
    lines = [
        f"{found['model']}: KL from the float model, nats, on {found['images']} synthetic images, weights at their "
        f"nearest codes; latency {latency['known']} on {latency['on']}, {latency['batch']} a pass",
        "",
        tabulate(rows, columns),
        "",
        f"{found['out']}: {_PICTURE}, {_JSON}, a recipe for each",
    ]
    if found["max_kl"] is not None and not any(
        p["recipe"].endswith("-cheapest") for p in found["points"]
    ):
        lines.append(f"not even eight bits everywhere are within {found['max_kl']} nats")
    return "\n".join(lines)
