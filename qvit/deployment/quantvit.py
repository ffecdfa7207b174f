"""QuantViT: a quantized Vision Transformer that computes in integers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from qvit import zoo
from qvit.data import DataConfig
from qvit.deployment import checkpoint
from qvit.deployment.placement import require_device
from qvit.deployment.provenance import architecture_of
from qvit.errors import UsageError
from qvit.models.integer import Integer
from qvit.models.timm_export import write_model
from qvit.models.unfolding import unfold
from qvit.models.vit import ViT
from qvit_kernels import ops


class QuantViT(nn.Module):
    """Images to logits, in integers; loads without float weights and without network.

    `.to(device)` moves it; `.half()` and other dtypes leave it as it is, since its scales and norms are fp32.

    Attributes:
        config: config.json of the checkpoint, as nested values.
        backend: "auto", "triton", "cpu" or "reference"; "auto" follows QVIT_BACKEND, then the device.
    """

    def __init__(self, vit: ViT, config: dict[str, Any], *, backend: str = "auto") -> None:
        super().__init__()
        if backend not in ops.BACKENDS:
            raise UsageError(f"unknown backend {backend!r}; use one of {', '.join(ops.BACKENDS)}")
        self.vit = vit
        self.config = config
        self.backend = backend
        self.eval()

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, device: str | torch.device = "cpu", backend: str = "auto"
    ) -> Self:
        """Load a folder that `qvit quantize` wrote, or such a repository on the hub (`org/name`).

        Raises InputError naming what is wrong with the folder, RequirementError for a device that is not there.
        """
        require_device(device if isinstance(device, str) else str(torch.device(device)))
        vit, config = checkpoint.load(checkpoint.locate(path))
        return cls(vit, config, backend=backend).to(device)

    @property
    def data_config(self) -> DataConfig:
        """The preprocessing that belongs to the weights."""
        return DataConfig.from_pretrained_cfg(self.config["pretrained_cfg"])

    def transform(self) -> Callable[..., Any]:
        """The evaluation transform: PIL image to float tensor [3, H, W]."""
        return self.data_config.transform()

    @property
    def scheme(self) -> str:
        """The scheme's short name, such as W4A8."""
        return self.config["quantization_config"]["scheme"]

    @property
    def num_classes(self) -> int:
        """Length of the logits; 0 for a model without head."""
        return self.vit.config.num_classes

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images, float [B, 3, H, W], to logits fp32 [B, num_classes] (pooled features without a head).

        Pixels are clamped to the 8-bit range, so that infinities and NaN give finite logits that mean nothing.
        """
        self._check(images)
        with torch.no_grad():  # not inference_mode: its tensors could not enter a trained head
            return self.vit(images, self._execution)

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalised images, float [B, 3, H, W], to tokens after the final norm, fp32 [B, T, D]."""
        self._check(images)
        with torch.no_grad():
            return self.vit.forward_features(images, self._execution)

    def dequantize(self) -> nn.Module:
        """timm's float model with the values that the integers stand for: fp32, in eval mode, on the same device.

        Every transform is undone but the rotations inside attention heads, which no result shows; LayerScale is
        multiplied into the weights. What differs from this model is what quantizing activations did.

        Raises InputError where timm cannot build the architecture that config.json names.
        """
        source = architecture_of(self.config, self.config["architecture"])
        with torch.device("meta"):  # its random weights would only be thrown away
            model = zoo.build(source)
        write_model(unfold(self.vit), model)
        return model.eval()

    def train(self, mode: bool = True) -> Self:
        """A QuantViT holds integers and cannot be trained; `eval()` is what it always is."""
        if mode:
            raise UsageError(
                "a QuantViT holds integers and cannot be trained; quantize again from the float weights"
            )
        return super().train(False)

    @property
    def _execution(self) -> Integer:
        return Integer(None if self.backend == "auto" else self.backend)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to a device, never to a dtype: scales in half precision would no longer be the checkpoint's."""

        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)

    def _check(self, images: Tensor) -> None:
        expected = (self.vit.config.in_chans, *self.vit.config.image_size)
        if not isinstance(images, Tensor):
            raise TypeError(
                f"images must be a tensor, got {type(images).__name__}; model.transform() makes one"
            )
        if images.dim() != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images must be [B, {', '.join(map(str, expected))}], got {list(images.shape)}; "
                "model.transform() makes such tensors"
            )
        if not images.is_floating_point():
            raise TypeError(
                f"images must be normalised floats, got {images.dtype}; model.transform() makes such tensors"
            )
