"""The quantized model as a product: QuantViT, its checkpoint folder, and the way there."""

from qvit.deployment.quantvit import QuantViT

__all__ = ["QuantViT"]
