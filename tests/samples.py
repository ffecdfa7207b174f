"""Small models and images on disk, for tests of what reads them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

CLASSES = ["ant", "bee", "cat10", "cat9"]  # natural order puts cat9 before cat10


def write_model_folder(folder: Path, architecture: str, **arguments: Any) -> Path:
    """A timm model with four classes and random weights, in timm's format."""
    from timm.models._hub import save_for_hf

    model = timm.create_model(architecture, num_classes=4, **arguments)
    for parameter in model.parameters():  # timm starts biases at zero: here every value matters
        torch.nn.init.normal_(parameter, std=0.05)
    save_for_hf(model, str(folder), model_args=arguments, safe_serialization=True)
    return folder


def write_image_folder(root: Path) -> Path:
    """Three images of noise in each of four class folders, of different sizes."""
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i in range(3):
            pixels = generator.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)
            (root / name / f"{i}.png").write_bytes(encode(Image.fromarray(pixels)))
    return root


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
