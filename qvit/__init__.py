"""Low-bit Vision Transformers from pretrained weights alone.

Importing this package loads nothing heavy: every public name below is imported when it is first
used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qvit.deployment import QuantViT
    from qvit.errors import GateError, InputError, QvitError, RequirementError, UsageError
    from qvit.pipeline import quantize
    from qvit.recipe import Recipe, load_recipe
    from qvit.zoo import Source, resolve

__version__ = "0.1.0"

__all__ = [
    "GateError",
    "InputError",
    "QuantViT",
    "QvitError",
    "Recipe",
    "RequirementError",
    "Source",
    "UsageError",
    "__version__",
    "load_recipe",
    "quantize",
    "resolve",
]

_HOMES = {
    "GateError": "qvit.errors",
    "InputError": "qvit.errors",
    "QuantViT": "qvit.deployment",
    "QvitError": "qvit.errors",
    "Recipe": "qvit.recipe",
    "RequirementError": "qvit.errors",
    "Source": "qvit.zoo",
    "UsageError": "qvit.errors",
    "load_recipe": "qvit.recipe",
    "quantize": "qvit.pipeline",
    "resolve": "qvit.zoo",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'qvit' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
