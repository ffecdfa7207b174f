"""Numbers as the report writes them."""

import math

_THIN = "\u202f"  # a thin space that does not break, between a number and its unit


def percent(share: float) -> str:
    """0.884 as "88 %"."""
    return f"{100 * share:.0f}{_THIN}%"


def duration(seconds: float) -> str:
    """Seconds up to two minutes, then minutes, then hours and minutes."""
    if seconds < 120:
        return f"{seconds:.3g}{_THIN}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}{_THIN}h {minutes:02d}{_THIN}min" if hours else f"{minutes}{_THIN}min"


def plain(value: object) -> str:
    """Any plain value of a manifest on one line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{words(str(k))} {plain(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def words(name: str) -> str:
    """A key as words: "images_read" is "images read"."""
    return name.replace("_", " ")


def milliseconds(ms: float) -> str:
    """7.153 as "7.15 ms"; three digits that count."""
    return f"{shortly(ms)}{_THIN}ms"


def shortly(value: float | None) -> str:
    """Three digits that count, without an exponent; a dash for nothing."""
    if value is None:
        return "-"
    if value == 0 or not -1e9 < value < 1e9:
        return f"{value:.3g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}"


def megabytes(size: float) -> str:
    """Bytes as "5.71 MB"."""
    return f"{shortly(size / 1e6)}{_THIN}MB"
