"""The trained models in the package, folders in timm's format; benchmarks/train_demo.py makes them."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

_WEIGHTS = Path(__file__).parent / "weights"

MODELS: Mapping[str, Path] = MappingProxyType(
    {name: _WEIGHTS / name for name in ("demo_vit", "demo_resnet")}
)
