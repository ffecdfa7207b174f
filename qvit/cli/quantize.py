"""`qvit quantize`: a pretrained model in, a folder with its low-bit version out."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from qvit.cli.quantities import read_quantity
from qvit.cli.session import Result, Session, outline, verb
from qvit.cli.target import announce, name_folder
from qvit.errors import UsageError
from qvit.recipe import BUDGETS, Recipe, keep_wide, load_recipe, preset_names


@verb("quantize")
@click.argument("model")
@click.option(
    "--w", "--weight-bits", "weight_bits", type=int, help="Bits of the weights, 2 to 8 [8]."
)
@click.option(
    "--a", "--act-bits", "act_bits", type=int, help="Bits of the activations, 2 to 8 [8]."
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Folder to write [out/MODEL-wXaY or -auto].",
)
@click.option(
    "--recipe", "recipe_name", default="qvit", show_default=True, metavar="NAME|FILE",
    help=f"How: {', '.join(preset_names())}, or a recipe.yaml.",
)  # fmt: skip
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a recipe field."
)
@click.option(
    "--budget", metavar="NAME|SHARE",
    help=f"Of a recipe's images, iterations and epochs: {', '.join(BUDGETS)}, or a share such as 0.05.",
)  # fmt: skip
@click.option("--seed", type=int, help="Seed of everything random [0].")
@click.option(
    "--weights", type=click.Path(path_type=Path), metavar="FILE",
    help="Float weights: .safetensors, or .pth without code.",
)  # fmt: skip
@click.option(
    "--no-pretrained", is_flag=True, help="Random weights: for timing, downloads nothing."
)
@click.option(
    "--calib-data", metavar="PATH",
    help="Round weights for images of your own, 128 at most, in place of synthetic ones.",
)  # fmt: skip
@click.option(
    "--calib-leaves", type=click.IntRange(min=0), metavar="N",
    help="So many synthetic images (dead leaves) beside those of --calib-data [0].",
)  # fmt: skip
@click.option(
    "--exclude", multiple=True, metavar="PATTERN",
    help="Keep layers of this name at 8 bits, such as blocks.*.mlp.fc2; `qvit sense` suggests some.",
)  # fmt: skip
@click.option(
    "--bits", type=click.Choice(["auto", "heads"]),
    help="auto: find the bits of every layer, within --max-size, --max-bitops and --max-latency; heads: of the weights "
    "of every attention head, too.",
)  # fmt: skip
@click.option(
    "--bit-search", type=click.Choice(["curvature", "qvit"]),
    help="How --bits auto finds them: by what each costs alone, or as Q-ViT, by training bits and weights [curvature].",
)  # fmt: skip
@click.option("--max-size", metavar="SIZE", help="Of model.safetensors, for --bits auto: 8MB.")
@click.option("--max-bitops", metavar="N", help="Of an image, for --bits auto: 76G.")
@click.option("--max-latency", metavar="TIME", help="Of a pass, for --bits auto: 0.6ms.")
@click.option(
    "--on", metavar="CARD",
    help="Where --max-latency counts: a card such as nvidia-h200, modelled [here, measured].",
)  # fmt: skip
@click.option(
    "--batch", type=click.IntRange(min=1), help="Images of a pass, for --max-latency [1]."
)
@click.option("--overwrite", is_flag=True, help="Replace the folder if it exists.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
def command(session: Session, model: str, **options: Any) -> Result:
    """Make MODEL low-bit from its weights alone and write a folder that loads without them.

    With --bits auto, every layer gets the bits that keep the model closest to the float one within --max-size,
    --max-bitops and --max-latency, or several at once: those of activations too, unless size alone is limited. With
    --bits heads, weights of an attention layer's heads have bits of their own.

    --bit-search qvit trains the bits with the weights in place of that, in minutes, on dead leaves or on --calib-data:
    to answer as the float model does or, with --set synthesis.labelled=true, as a folder of each class says.

    With --calib-data, weights are rounded for real images: any folder, .tar or hfds/NAME, no labels needed.

    MODEL is an alias (`qvit models` lists them), any timm name with or without tag,
    hf-hub:ORG/REPO, or a folder with config.json and model.safetensors.
    """
    weights, no_pretrained = options["weights"], options["no_pretrained"]
    if weights is not None and no_pretrained:
        raise UsageError("--weights and --no-pretrained exclude each other; give one of them")
    settings = list(options["settings"])
    if options["seed"] is not None:
        settings.append(f"seed={options['seed']}")
    settings += [f"layers.{name}={bits}" for name, bits in map(keep_wide, options["exclude"])]
    limits = _limits(options)
    recipes = _recipes(options, limits)
    from qvit import pipeline, zoo

    source = zoo.resolve(model, weights=weights, pretrained=not no_pretrained)
    recipes = [
        recipe.override(settings)
        for recipe in _with_images(recipes, options, source.pretrained_cfg)
    ]
    if session.verbosity >= 0:
        announce(source)
    scheme = "auto" if limits else recipes[0].scheme.lower().replace(" ", "-")
    out = options["out"] or Path("out") / f"{name_folder(model)}-{scheme}"
    begun = time.perf_counter()
    recipe, found = _search(source, recipes, limits, out, options, session.progress)
    if options["dry_run"]:
        plan = pipeline.plan(source, recipe, out, overwrite=options["overwrite"])
        if limits:  # bits are not found yet: these would be those that the search begins with
            plan = {key: value for key, value in plan.items() if key not in _OF_BITS}
        plan = {**found, **plan, "out": str(out), "recipe": recipe.to_dict()}
        return Result(plan, outline(_worded(plan)))
    seconds = {"search": round(time.perf_counter() - begun, 2)} if limits else {}
    summary = pipeline.quantize(
        source, recipe, out, overwrite=options["overwrite"], progress=session.progress
    )
    summary = {**summary, **found, "seconds": seconds | summary["seconds"]}
    return Result(summary, outline(_worded(summary)))


_OF_BITS = {"scheme", "tensor_bytes", "bytes"}
_BUDGETS = {
    "size": ("--max-size", "B"),
    "bitops": ("--max-bitops", "BitOps"),
    "latency": ("--max-latency", "s"),
}


def _worded(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of a search for people: amounts of budgets with their units."""
    if "search" not in summary:
        return dict(summary)
    from qvit.search.costs import say_amount

    def worded(name: str, budget: Mapping[str, Any]) -> dict[str, Any]:
        unit = _BUDGETS[name][1]
        # a limit that is given as it is said here can be met
        said = {k: say_amount(budget[k], unit, up=k == "smallest") for k in _AMOUNTS if k in budget}
        return {**budget, **said}

    search = dict(summary["search"])
    budgets = search.get("budgets", search)  # those of a plan, or among what was found
    told = {name: worded(name, budgets[name]) for name in _BUDGETS if name in budgets}
    return {**summary, "search": search | ({"budgets": told} if "budgets" in search else told)}


_AMOUNTS = ("limit", "found", "smallest", "largest")


def _limits(options: Mapping[str, Any]) -> dict[str, float]:
    """The budgets of --bits auto, in bytes, BitOps and seconds. Raises UsageError where one comes without the other."""
    limits = {
        name: read_quantity(option, options[f"max_{name}"], unit)
        for name, (option, unit) in _BUDGETS.items()
        if options[f"max_{name}"] is not None
    }
    given = ", ".join(_BUDGETS[name][0] for name in limits)
    if limits and options["bits"] is None:
        raise UsageError(f"{given}: for a search of bits; add --bits auto")
    if options["bits"] is not None and not limits:
        raise UsageError(
            f"--bits {options['bits']} needs a budget: --max-size 8MB, --max-bitops 76G, --max-latency 0.6ms, or more"
        )
    if options["bit_search"] is not None and options["bits"] is None:
        raise UsageError("--bit-search says how bits are searched; add --bits auto")
    for option in ("on", "batch"):
        if options[option] is not None and "latency" not in limits:
            raise UsageError(f"--{option} says where --max-latency counts, which is not given")
    return limits


def _recipes(options: Mapping[str, Any], limits: Mapping[str, float]) -> list[Recipe]:
    """The recipe; of several, a search begins with the one that suits its budgets, where no bits say which it is."""
    name, weights, activations = (options[k] for k in ("recipe_name", "weight_bits", "act_bits"))
    if not limits or name not in preset_names():  # a file means what it says of layers
        return [load_recipe(name, weights, activations, options["budget"])]
    from qvit.search.start import depend_on_inputs, preset_starts

    if weights is None and activations is None:
        return preset_starts(name, limits, options["budget"])
    inputs = activations or (4 if depend_on_inputs(limits) else None)
    return [load_recipe(name, weights or 4, inputs, options["budget"]).with_open_ends()]


def _search(
    source: Any,
    recipes: Sequence[Recipe],
    limits: Mapping[str, float],
    out: Path,
    options: Mapping[str, Any],
    progress: bool,
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with the bits that are found within limits, if there are any, and what is to be said of the search."""
    if not limits:
        return recipes[0], {}
    from qvit import pipeline
    from qvit.search.latency import HERE, Place
    from qvit.search.run import METHODS, allocate, plan_search

    place = Place(options["on"] or HERE, options["batch"] or 1)
    method = options["bit_search"] or METHODS[0]
    heads = options["bits"] == "heads"
    if options["dry_run"]:
        recipe, plan = plan_search(source, recipes, limits, place, method, heads=heads)
        return recipe, {"search": plan}
    # what refuses, refuses now
    pipeline.plan(source, recipes[0], out, overwrite=options["overwrite"])
    found, known = allocate(source, recipes, limits, place, method, heads=heads, progress=progress)
    return found, {"search": known}


def _with_images(
    recipes: Sequence[Recipe], options: Mapping[str, Any], cfg: Mapping[str, Any]
) -> list[Recipe]:
    """The recipes with the user's images, if any, for their own. Raises UsageError where one learns from none."""
    data, leaves = options["calib_data"], options["calib_leaves"]
    if data is None:
        if leaves is not None:
            raise UsageError(
                "--calib-leaves stands beside --calib-data PATH; without it all images are leaves: say how many with "
                "--set synthesis.images=N"
            )
        return list(recipes)
    for recipe in recipes:
        if recipe.synthesis is None:
            raise UsageError(
                f"--calib-data {data}: {recipe.name} at {recipe.scheme} learns from no images; leave it out"
            )
    from qvit.recipe import CUSTOM
    from qvit.synthesis import calibration_images

    images = calibration_images(data, cfg, leaves=leaves or 0)
    return [replace(recipe, synthesis=images, budget=CUSTOM) for recipe in recipes]
