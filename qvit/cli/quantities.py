"""Numbers with units, as they are written on a command line: 8MB, 1.5 MiB, 76G, 0.6ms."""

import re

from qvit.errors import UsageError

_DECIMAL = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_BINARY = {"ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30}
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]i?)?(b|bitops)?", re.IGNORECASE)


def read_quantity(option: str, text: str, unit: str) -> float:
    """A positive number; unit: "B" or "BitOps", which may follow it, or "s", which has to. Raises UsageError, which
    names the option.
    """
    if unit == "s":
        return _read_seconds(option, text)
    found = _QUANTITY.fullmatch(text.strip())
    if found is not None:
        number, prefix, given = found.groups()
        factor = (_DECIMAL | _BINARY).get((prefix or "").lower())
        if factor and float(number) > 0 and (given or unit).lower() == unit.lower():
            return float(number) * factor
    example = "8MB" if unit == "B" else "76G"
    raise UsageError(f"{option} {text}: expected a number of {unit}, such as {example}")


_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_TIME = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(s|ms|us)")


def _read_seconds(option: str, text: str) -> float:
    found = _TIME.fullmatch(text.strip())
    if found is None or not float(found.group(1)) > 0:
        raise UsageError(f"{option} {text}: expected a time with its unit, such as 0.6ms or 350us")
    return float(found.group(1)) * _SECONDS[found.group(2)]
