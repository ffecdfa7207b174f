"""The quantized model as a product: QuantViT, its checkpoint folder, and the way there."""

from qvit.deployment.explanation import Explanation, MachineRates
from qvit.deployment.quantvit import QuantViT

__all__ = ["Explanation", "MachineRates", "QuantViT"]
