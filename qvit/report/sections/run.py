"""What went in, and how the run was made."""

from collections.abc import Iterator

from qvit.report.evidence import Evidence
from qvit.report.page import Notice, Paragraph, Section, Table
from qvit.report.wording import duration, plain, words


def state_privacy(evidence: Evidence) -> Section:
    """The privacy statement of the manifest, as it stands there."""
    statement = evidence.run.manifest["privacy"]
    rows = [(words(name), plain(value)) for name, value in statement.items() if name != "statement"]
    blocks: list[Table | Paragraph] = [Table(("", ""), rows)]
    if evidence.real is not None:
        blocks.append(
            Paragraph(
                f"The real images on this page come from {evidence.real_source} and were read for this report only,"
                " after the run."
            )
        )
    return Section("privacy", "Privacy", str(statement["statement"]), blocks, dict(statement))


def list_facts(evidence: Evidence) -> Section:
    """Model, method, settings, versions and files of the run."""
    manifest = evidence.run.manifest
    settings = [(name, plain(value)) for name, value in manifest["settings"].items()]
    shards = [(s["file"], str(s["images"]), s["sha256"]) for s in manifest["shards"]]
    blocks: list[Table | Notice] = [Table(("", ""), list(_facts(evidence)))]
    blocks += [Notice(text) for text in evidence.run.recoveries]
    blocks += [
        Table(("setting", "value"), settings, code=True, folded="Every setting"),
        Table(("file", "images", "sha256"), shards, frozenset({1}), code=True, folded="Files"),
    ]
    lead = "Enough to make the same images again, byte for byte, on this kind of processor with as many threads."
    return Section("run", "The run", lead, blocks)


def _facts(evidence: Evidence) -> Iterator[tuple[str, str]]:
    manifest = evidence.run.manifest
    run, model, counts = manifest["run"], manifest["model"], manifest["counts"]
    name, threads = model["name"], manifest["threads"]
    yield "model", name if name == model["timm_name"] else f"{name} = {model['timm_name']}"
    yield "weights", f"sha256 {model['weights_sha256']}" if model["pretrained"] else "random"
    yield "method", manifest["method"]
    yield "images", f"{counts['images']:,} in {counts['batches']:,} batches"
    yield "seed", str(manifest["seed"])
    yield (
        "computed on",
        f"{run['device']} ({run['cpu']}), {threads} thread{'s' if threads > 1 else ''}",
    )
    yield "computing time", duration(evidence.run.seconds)
    yield "batches made again", str(manifest["retried"])
    yield "versions", plain(manifest["versions"])
    yield "fingerprint", manifest["fingerprint"]
