"""Write the report of a folder, each file whole or not at all."""

from pathlib import Path
from typing import Any

from qvit.deployment import checkpoint
from qvit.errors import UsageError
from qvit.report import quantized, synthesis
from qvit.report.gathering import gather
from qvit.report.records import read_folder
from qvit.report.rendering import draw_files, render_html, render_markdown
from qvit.synthesis.shards import write_whole

SCHEMA_VERSION = 1
HTML, MARKDOWN = "report.html", "report.md"


def write_report(
    folder: Path,
    *,
    out: Path | None = None,
    real: str | None = None,
    limit: int = 256,
    weights: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Write report.html, report.md and the pictures that it links to.

    Args:
        folder: What `qvit synthesize` or `qvit quantize` wrote. Of a quantized model, what `eval`, `bench` and `sense`
            have kept in it is shown, and nothing is computed but pictures that a seed makes again.
        out: Where to write; the folder itself if None.
        real: Images to compare with, as `qvit.data.open_images` takes them.
        limit: Images of each kind to measure at most.
        weights: The float weights, if they are not where the manifest says.
        progress: Show what is being measured on stderr.

    Returns:
        `schema_version`, `kind`, the paths `report`, `markdown` and `pictures`, `summary` (the numbers at the top of
        the page) and `sections` (the numbers below them, by section).

    Raises:
        InputError: The folder is no finished synthesis and no quantized model, a record in it is broken, or the
        weights or images cannot be read or do not fit. UsageError: `out` is a file, or the images are those of a
        ResNet.
    """
    place = (out or folder).resolve()
    if place.exists() and not place.is_dir():
        raise UsageError(f"-o {out} is a file; name a folder")
    if checkpoint.is_checkpoint(folder):
        kind, page = "quantized", quantized.make_page(read_folder(folder))
    else:
        kind = "synthesis"
        page = synthesis.make_page(
            gather(folder, real=real, limit=limit, weights=weights, progress=progress)
        )
    files = {
        HTML: render_html(page).encode(),
        MARKDOWN: render_markdown(page).encode(),
        **draw_files(page),
    }
    place.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_whole(place / name, content)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "report": str(place / HTML),
        "markdown": str(place / MARKDOWN),
        "pictures": [str(place / name) for name in files if name.endswith(".png")],
        "summary": {key.label: key.value for key in page.keys},
        "sections": page.to_dict(),
    }
