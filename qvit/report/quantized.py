"""The report of a quantized folder: which sections it has, and what stands above them."""

from collections.abc import Callable

from qvit import __version__
from qvit.report.latency import list_sections
from qvit.report.page import Key, Page, Section
from qvit.report.records import Folder
from qvit.report.sections.accuracy import show_accuracy
from qvit.report.sections.circumstances import MEASURED
from qvit.report.sections.latency import find_own, key_of_speed, name_time
from qvit.report.sections.model import list_missing, show_bits, show_provenance
from qvit.report.sections.samples import show_samples
from qvit.report.sections.sensitivity import show_sensitivity
from qvit.report.wording import megabytes, percent, shortly

# In reading order; what the latency report has stands between the two, but for how it was measured, which comes last.
BEFORE: tuple[Callable[[Folder], Section | None], ...] = (show_accuracy,)
AFTER: tuple[Callable[[Folder], Section | None], ...] = (
    show_sensitivity,
    show_samples,
    show_bits,
    show_provenance,
)


def make_page(folder: Folder) -> Page:
    """The page of one quantized model."""
    latency = list_sections(folder.latency) if folder.latency is not None else []
    how = [section for section in latency if section.name == MEASURED]
    made = [[s for make in part if (s := make(folder)) is not None] for part in (BEFORE, AFTER)]
    missing = list_missing(folder)
    return Page(
        title=f"{folder.name}, {folder.scheme}",
        subtitle=_subtitle(folder),
        keys=_keys(folder),
        sections=[
            *made[0],
            *(section for section in latency if section.name != MEASURED),
            *made[1],
            *how,
            *([missing] if missing else []),
        ],
        footer=f"Written by qvit {__version__} from {folder.path.name}. Everything on this page is in this one file; it"
        " loads nothing.",
    )


def _subtitle(folder: Folder) -> str:
    read = folder.run.get("images_read")
    how = f"on {read} images" if read else "from its weights alone, without a single real image"
    return f"A Vision Transformer quantized {how}."


def _keys(folder: Folder) -> list[Key]:
    keys: list[Key] = []
    found, latency = folder.evaluation, folder.latency
    if found is not None:
        fp32 = found["float"]["top1"]
        detail = (
            "" if fp32 is None else f"float {fp32:.1f} %, {fp32 - found['top1']:.1f} points lost"
        )
        keys.append(Key("Top-1", f"{found['top1']:.1f} %", detail or f"{found['images']} images"))
        if found["agreement"] is not None:
            keys.append(
                Key(
                    "Same answer as float",
                    f"{found['agreement']:.1f} %",
                    f"KL {shortly(found['kl'])} nats",
                )
            )
    size, fp32_size = folder.weights_bytes, folder.fp32_bytes
    detail = f"fp32 {megabytes(fp32_size)}: {percent(size / fp32_size)} of it" if fp32_size else ""
    keys.append(Key("Weights", megabytes(size), detail))
    row = None if latency is None else find_own(latency)
    if row is not None:
        keys.append(Key("A pass", name_time(row), f"batch {row['batch']}, {row['variant']}"))
        if (speed := key_of_speed(row)) is not None:
            keys.append(speed)
    return keys
