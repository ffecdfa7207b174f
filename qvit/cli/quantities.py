"""Numbers with units, as they are written on a command line: 8MB, 1.5 MiB, 76G."""

import re

from qvit.errors import UsageError

_DECIMAL = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_BINARY = {"ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30}
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]i?)?(b|bitops)?", re.IGNORECASE)


def read_quantity(option: str, text: str, unit: str) -> float:
    """A positive number; unit: "B" or "BitOps", which may follow it. Raises UsageError, which names the option."""
    found = _QUANTITY.fullmatch(text.strip())
    if found is not None:
        number, prefix, given = found.groups()
        factor = (_DECIMAL | _BINARY).get((prefix or "").lower())
        if factor and float(number) > 0 and (given or unit).lower() == unit.lower():
            return float(number) * factor
    example = "8MB" if unit == "B" else "76G"
    raise UsageError(f"{option} {text}: expected a number of {unit}, such as {example}")
