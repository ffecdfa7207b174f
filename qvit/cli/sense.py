"""`qvit sense`: which layers low bits hurt, and which to keep at 8."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from qvit.cli.kept import keep_beside
from qvit.cli.outputs import check_file, write_text
from qvit.cli.session import Result, Session, tabulate, verb
from qvit.cli.target import announce, as_folder, name_folder
from qvit.errors import InputError, UsageError
from qvit.kept import SENSITIVITY

_COLUMNS = {
    "name": "layer",
    "kl_alone": "KL alone",
    "agreement_alone": "same top-1 %",
    "kl_gain": "KL won by 8 bits",
}
_SHOWN = 10


@verb("sense")
@click.argument("target", metavar="FOLDER|MODEL")
@click.option("--w", "--weight-bits", "weight_bits", type=int, help="Bits of the weights [4].")
@click.option("--a", "--act-bits", "act_bits", type=int, help="Bits of the activations [4].")
@click.option(
    "--recipe",
    "recipe_name",
    metavar="NAME|FILE",
    help="A recipe for MODEL [qvit]; FOLDER has its own.",
)
@click.option(
    "-n", "--images", default=32, show_default=True, help="Synthetic images to compare on."
)
@click.option(
    "--weights", type=click.Path(path_type=Path), metavar="FILE",
    help="Float weights, where they are not at their place.",
)  # fmt: skip
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="FILE",
    help="Where the JSON goes, and beside it a page with the picture [FOLDER/sense.json or out/MODEL-sense.json].",
)  # fmt: skip
def command(session: Session, target: str, **options: Any) -> Result:
    """Measure how far every layer of MODEL moves the answers when it alone is in low bits, without data.

    Layers are the Linears, and attention products where the recipe has them below 8 bits. KL from the float model and
    agreement with it are taken on synthetic images. Layers that stand out are suggested for `qvit quantize --exclude`,
    which keeps them at 8 bits, if the model without them was measured to come closer to the float one. A quantized
    FOLDER is measured by its own recipe, on its float model; the result is kept in it for `qvit report`.
    """
    from qvit import sensitivity

    request = sensitivity.Request(images=options["images"])
    folder = as_folder(target)
    recipe = _read_recipe(folder, options)
    source = _find_source(target, folder, options["weights"])
    out = options["out"] or (
        None if folder else Path("out") / f"{name_folder(target)}-{SENSITIVITY}"
    )
    if out is not None:
        if out.suffix in (".html", ".htm"):
            raise UsageError(f"-o {out}: name the JSON; the page is written beside it")
        check_file("-o", out)
    if session.verbosity >= 0:
        announce(source)
    found = sensitivity.measure_sensitivity(source, recipe, request, progress=session.progress)
    if folder is not None and options["out"] is None:
        keep_beside(folder, SENSITIVITY, found)
    elif out is not None:
        _write(out, found)
    return Result(found, _render(found))


def _read_recipe(folder: Path | None, options: Mapping[str, Any]) -> Any:
    from qvit import sensitivity
    from qvit.recipe import load_recipe

    if folder is None:
        name, weights, inputs = options["recipe_name"], options["weight_bits"], options["act_bits"]
        if name is None:
            weights, inputs = weights or 4, inputs or 4
        return load_recipe(name or "qvit", weights, inputs)
    for name in ("weight_bits", "act_bits", "recipe_name"):
        if options[name] is not None:
            raise UsageError(
                f"{folder} is measured by its own recipe; give the float model's name to choose another"
            )
    return sensitivity.recipe_of(folder)


def _find_source(target: str, folder: Path | None, weights: Path | None) -> Any:
    from qvit import zoo
    from qvit.deployment.provenance import find_origin

    if folder is None:
        return zoo.resolve(target, weights=weights)
    source = find_origin(folder, weights).source
    if source is None:
        raise InputError(
            f"the float model of {folder} is not at hand; name its weights with --weights FILE"
        )
    return source


def _write(path: Path, found: Mapping[str, Any]) -> None:
    from qvit.deployment import checkpoint
    from qvit.report import describe_sensitivity

    checkpoint.write_json(path, found)
    write_text(path.with_suffix(".html"), describe_sensitivity(found)["html"])


def _render(found: Mapping[str, Any]) -> str:
    layers = sorted(found["layers"], key=lambda layer: -layer["kl_alone"])
    shown = [
        layer | {key: f"{layer[key]:.4g}" for key in ("kl_alone", "kl_gain")}
        for layer in layers[:_SHOWN]
    ]
    lines = [
        f"{found['model']} {found['scheme']}, {found['images']} {found['pictures']}: KL {found['kl']:.4g} nats, same "
        f"top-1 on {found['agreement']:.1f} %; with 8 bits in every layer {found['kl_wide']:.4g}",
        "",
        tabulate(shown, _COLUMNS),
    ]
    if len(layers) > _SHOWN:
        lines.append(f"and {len(layers) - _SHOWN} more, in the JSON")
    if not found["exclude"]:
        return "\n".join(
            [*lines, "", "nothing to exclude: no layer stands out that is surely worth 8 bits"]
        )
    patterns = " ".join(f"--exclude {name}" for name in found["exclude"])
    return "\n".join(
        [
            *lines,
            "",
            f"keeping {len(found['exclude'])} at 8 bits: KL {found['kl_excluded']:.4g}, same top-1 on "
            f"{found['agreement_excluded']:.1f} %:",
            f"  qvit quantize ... {patterns}",
        ]
    )
