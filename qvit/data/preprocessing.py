"""From an image file to the tensor that a model was trained on."""

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

from qvit.errors import UsageError

if TYPE_CHECKING:
    import torch
    from PIL import Image

_CROP_MODES = ("center", "squash", "border")
# What Pillow's decoders raise on broken files, depending on the format. DecompressionBombError is
# caught apart.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """The preprocessing that belongs to a model's weights, in timm's terms.

    Attributes:
        input_size: (3, height, width) in pixels.
        mean: Subtracted from each channel, of values in [0, 1].
        std: Divides each channel afterwards.
        interpolation: "bicubic", "bilinear", ...
        crop_pct: The side of the crop over the side that the image is resized to, in (0, 1].
        crop_mode: "center" (short side resized, middle taken), "squash" (both sides resized) or
            "border" (long side resized, the rest filled).
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        if self.input_size[0] != 3:
            raise UsageError(
                f"The model takes images with {self.input_size[0]} channels; qvit feeds RGB images"
                " only."
            )
        if not 0 < self.crop_pct <= 1:
            raise UsageError(f"The crop fraction must lie in (0, 1], got {self.crop_pct}.")
        if self.crop_mode not in _CROP_MODES:
            raise UsageError(
                f"Unknown crop mode '{self.crop_mode}'; timm has {', '.join(_CROP_MODES)}."
            )

    @classmethod
    def from_pretrained_cfg(
        cls,
        cfg: Mapping[str, Any],
        *,
        crop_pct: float | None = None,
        crop_mode: str | None = None,
    ) -> "DataConfig":
        """Read timm's `pretrained_cfg`, or what `to_dict` wrote; timm's defaults fill the rest.

        Args:
            cfg: The settings; other keys are left alone.
            crop_pct: Used instead of that in `cfg`, as `--crop-pct` of timm's validate.py.
            crop_mode: The same for the crop mode.

        Raises:
            UsageError: A setting is out of range.
        """
        from timm.data.config import resolve_data_config

        args = {
            k: v for k, v in (("crop_pct", crop_pct), ("crop_mode", crop_mode)) if v is not None
        }
        if crop_pct == 0:  # timm takes 0 for "not given"
            raise UsageError("The crop fraction must lie in (0, 1], got 0.")
        # An empty configuration is one that relies on the defaults; timm asks for a model in that
        # case.
        settings = resolve_data_config(args, pretrained_cfg={"input_size": None, **cfg})
        return cls(
            input_size=tuple(settings["input_size"]),
            mean=tuple(settings["mean"]),
            std=tuple(settings["std"]),
            interpolation=settings["interpolation"],
            crop_pct=settings["crop_pct"],
            crop_mode=settings["crop_mode"],
        )

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON knows them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def transform(self) -> Callable[["Image.Image"], "torch.Tensor"]:
        """timm's evaluation transform: an RGB image to a float32 tensor [3, height, width]."""
        from timm.data.transforms_factory import create_transform

        transform = create_transform(
            input_size=self.input_size,
            is_training=False,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
        )
        return cast("Callable[[Image.Image], torch.Tensor]", transform)  # a pair only in training


def decode(data: bytes) -> "Image.Image":
    """An encoded image as 8-bit RGB pixels.

    CMYK, palette and grey images are converted as Pillow does; 16-bit ones are scaled, which Pillow
    does not do; transparency is dropped, as in timm.

    Raises:
        OSError: It is truncated, corrupt, no image, or too large to be one.
    """
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (*_DECODER_ERRORS, Image.DecompressionBombError) as error:
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise OSError(reason or type(error).__name__) from error
    return _to_rgb(image)


def _to_rgb(image: "Image.Image") -> "Image.Image":
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;16"):
        return _to_eight_bits(image).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB is the same picture, with a warning
    return image.convert("RGB")


def _to_eight_bits(image: "Image.Image") -> "Image.Image":
    """Pillow clips wide pixels at 255, which turns a 16-bit picture white."""
    import numpy as np
    from PIL import Image

    pixels = np.asarray(image).astype(np.float64)
    top = pixels.max(initial=0.0)
    if image.mode == "F" and top <= 1:
        pixels = pixels * 255
    elif image.mode.startswith("I;16") or top > 255:
        pixels = pixels / 257  # 65535 / 255
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
