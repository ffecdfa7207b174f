"""What the model consists of and where it came from."""

from collections.abc import Iterator, Mapping
from typing import Any

from qvit.report.page import Block, Notice, Paragraph, Section, Table
from qvit.report.records import Folder
from qvit.report.wording import duration, megabytes, plain, words

_BITS = ("layers", "weight bits", "group", "input bits", "group", "transform")


def show_bits(folder: Folder) -> Section:
    """Storage and computation of every kind of layer."""
    linears = [row for row in folder.bits if "weight_bits" in row]
    attentions = [row for row in folder.bits if "qkv_bits" in row]
    cells = [
        (
            ", ".join(row["modules"]),
            _weight_bits(row),
            str(row.get("weight_group") or "-"),
            _input_bits(row),
            str(row.get("input_group") or "-"),
            str(row.get("transform") or "-"),
        )
        for row in linears
    ]
    blocks: list[Block] = [Table(_BITS, cells, frozenset({1, 2, 3, 4, 5}))]
    blocks += [
        Paragraph(
            f"Attention of {', '.join(row['modules'])}: queries, keys and values in {row['qkv_bits']} bits, softmax in "
            f"{row['softmax_bits']}."
        )
        for row in attentions
    ]
    lead = (
        f"Weights take {megabytes(folder.weights_bytes)}. Every matrix product is one of integers; LayerNorm, GELU, "
        f"softmax and the residual stream ({folder.residual}) are float."
    )
    return Section("bits", "Bits", lead, blocks, {"bits": folder.bits})


def _weight_bits(row: Mapping[str, Any]) -> str:
    """ "4", or "3.7 (heads 4, 4, 3)": a mean, and what it is of."""
    heads = ", ".join(map(str, row.get("head_bits", ())))
    return f"{row['weight_bits']:.3g}" + (f" (heads {heads})" if heads else "")


def _input_bits(row: Mapping[str, Any]) -> str:
    """ "3", or "3 (prefix tokens 8)": class, distillation and register tokens."""
    return f"{row['input_bits']}" + (" (prefix tokens 8)" if row.get("input_prefix") else "")


def show_provenance(folder: Folder) -> Section:
    """Where the weights came from, how they were made low-bit, and from which images."""
    blocks: list[Block] = [Table(("", ""), list(_facts(folder)), code=False)]
    if folder.license_note:
        blocks.append(Notice(folder.license_note))
    recipe = _recipe(folder.recipe)
    blocks.append(Table(("field", "value"), recipe, code=True, folded="The recipe"))
    return Section(
        "provenance",
        "Provenance",
        _images(folder),
        blocks,
        {"source": folder.run.get("source"), "recipe": dict(recipe)},
    )


def list_missing(folder: Folder) -> Section | None:
    """What the page lacks, and the command that adds it."""
    missing = [
        (what, command)
        for what, found, command in (
            ("accuracy", folder.evaluation, f"qvit eval {folder.path.name} --data IMAGES"),
            ("latency", folder.latency, f"qvit bench {folder.path.name}"),
            ("sensitivity of the layers", folder.sensitivity, f"qvit sense {folder.path.name}"),
        )
        if found is None
    ]
    if not missing:
        return None
    lead = f"Nobody has measured these yet. The commands are for the folder that {folder.path.name} lies in."
    table = Table(("not measured", "what adds it"), missing, code=True)
    return Section("missing", "Not on this page", lead, [table])


def _images(folder: Folder) -> str:
    images, read = folder.run.get("images"), folder.run.get("images_read")
    if not images:
        return "No image was used: every weight is at its nearest code."
    if folder.samples is not None:
        return "Recipe and seed make the same model again; the images that it learned from are under Synthesis."
    if read:
        return f"Weights were rounded for {read} images that were given."
    return (
        f"Weights were rounded for {images['images']} synthetic images. No real image was read, and the synthetic "
        "ones are no part of the model."
    )


def _facts(folder: Folder) -> Iterator[tuple[str, str]]:
    source, run = folder.run.get("source") or {}, folder.run
    yield "float model", source.get("timm_name") or folder.name
    weights: Any = source.get("weights") or {}
    if weights.get("sha256"):
        yield "its weights", f"sha256 {weights['sha256']}"
    elif source.get("pretrained") is False:
        yield "its weights", "random: this model is for timing, and classifies nothing"
    if folder.license:
        yield "licence of its weights", folder.license
    for name, digest in (run.get("sha256") or {}).items():
        yield name, f"sha256 {digest}"
    if (images := run.get("images")) and folder.samples is None:
        yield "synthetic images", f"{images['images']}, fingerprint {images['fingerprint']}"
    if run.get("seed") is not None:
        yield "seed", str(run["seed"])
    if seconds := run.get("seconds"):
        whole = duration(sum(seconds.values()))
        yield (
            "time",
            f"{whole}: " + ", ".join(f"{words(k)} {duration(v)}" for k, v in seconds.items()),
        )
    if versions := run.get("versions"):
        yield "versions", plain({k: v for k, v in versions.items() if v is not None})


def _recipe(text: str) -> list[tuple[str, str]]:
    """Lines of a YAML file as rows; what is indented belongs to the line above it."""
    rows, room = [], ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if not line.startswith(" "):
            room = key
        if value.strip():
            rows.append(
                (
                    key.strip() if not line.startswith(" ") else f"{room}.{key.strip()}",
                    value.strip(),
                )
            )
    return rows
