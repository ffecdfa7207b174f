"""Preprocessing and batches."""

import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from timm.models import get_pretrained_cfg

from qvit.data import DataConfig, batches, open_images
from qvit.data.preprocessing import decode
from qvit.errors import InputError, UsageError
from tests.samples import encode, write_image_folder

CONFIG = DataConfig(input_size=(3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=0.9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "images")


# Preprocessing


@pytest.mark.parametrize(
    "name", ["deit_small_patch16_224.fb_in1k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"]
)
def test_the_transform_is_timms(name: str) -> None:
    cfg = get_pretrained_cfg(name)
    assert cfg
    config = DataConfig.from_pretrained_cfg(cfg.to_dict())
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))
    reference = create_transform(
        cfg.input_size,
        is_training=False,
        interpolation=cfg.interpolation,
        mean=cfg.mean,
        std=cfg.std,
        crop_pct=cfg.crop_pct,
    )
    assert torch.equal(config.transform()(image), reference(image))  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_settings_survive_json_and_can_be_overridden() -> None:
    assert DataConfig.from_pretrained_cfg(CONFIG.to_dict()) == CONFIG
    assert CONFIG.to_dict()["input_size"] == [3, 32, 32]
    changed = DataConfig.from_pretrained_cfg(CONFIG.to_dict(), crop_pct=1.0, crop_mode="squash")
    assert (changed.crop_pct, changed.crop_mode) == (1.0, "squash")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8))
    assert not torch.equal(changed.transform()(image), CONFIG.transform()(image))


def test_an_empty_configuration_means_timms_defaults() -> None:
    config = DataConfig.from_pretrained_cfg({})
    assert config.input_size == (3, 224, 224)
    assert (config.crop_pct, config.crop_mode) == (0.875, "center")


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"crop_pct": 0.0}, "crop fraction"),
        ({"crop_pct": 1.5}, "crop fraction"),
        ({"crop_mode": "middle"}, "center, squash, border"),
    ],
)
def test_impossible_crops_are_refused(settings: dict, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        DataConfig.from_pretrained_cfg({}, **settings)


def test_models_for_grey_images_are_refused() -> None:
    with pytest.raises(UsageError, match="1 channels"):
        DataConfig.from_pretrained_cfg({"input_size": (1, 28, 28), "mean": (0.5,), "std": (0.5,)})


GRADIENT = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)


def colours() -> Image.Image:
    return Image.fromarray(np.stack([GRADIENT, GRADIENT.T, 255 - GRADIENT], axis=2))


@pytest.mark.parametrize("kind", ["L", "LA", "1", "P", "RGBA", "CMYK"])
def test_eight_bit_modes_become_rgb_as_pillow_converts_them(kind: str) -> None:
    image = colours().convert(kind)
    data = encode(image, "TIFF" if kind == "CMYK" else "PNG")
    decoded = decode(data)
    assert decoded.mode == "RGB"
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(np.asarray(decoded).astype(int) - expected).max() == 0


def test_a_palette_with_transparency_is_read_without_a_warning() -> None:
    image = colours().convert("P")
    data = encode(image, transparency=bytes(range(200)))
    assert "transparency" in Image.open(io.BytesIO(data)).info
    assert np.array_equal(np.asarray(decode(data)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("pixels", "kind"),
    [
        (GRADIENT.astype(np.uint16) * 257, "PNG"),
        (GRADIENT.astype(np.uint16) * 257, "TIFF"),
        (GRADIENT.astype(np.int32) * 257, "TIFF"),
        (GRADIENT.astype(np.float32) / 255, "TIFF"),
        (GRADIENT.astype(np.float32), "TIFF"),
    ],
    ids=["png16", "tiff16", "tiff32", "float-unit", "float-bytes"],
)
def test_wide_pixels_are_scaled_not_clipped(pixels: np.ndarray, kind: str) -> None:
    decoded = decode(encode(Image.fromarray(pixels), kind))
    assert decoded.mode == "RGB"
    for channel in range(3):
        assert np.array_equal(np.asarray(decoded)[..., channel], GRADIENT)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.3, 0.7])
def test_truncated_images_raise_one_kind_of_error(kind: str, kept: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(Image.fromarray(pixels), kind)
    with pytest.raises(OSError, match=r".+"):
        decode(data[: int(len(data) * kept)])


def test_flipped_bytes_never_raise_anything_else() -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (32, 32, 3), np.uint8)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        data = np.frombuffer(encode(Image.fromarray(pixels), kind), np.uint8)
        for _ in range(60):
            broken = data.copy()
            places = generator.integers(0, min(len(data), 200), 4)
            broken[places] = generator.integers(0, 256, 4)
            try:
                assert decode(broken.tobytes()).mode == "RGB"
            except (OSError, Warning):  # the suite turns Pillow's warnings into errors
                continue


# Batches


@pytest.mark.parametrize("workers", [0, 1, 3, None])
def test_batches_are_complete_and_in_order(folder: Path, workers: int | None) -> None:
    dataset = open_images(folder, CONFIG)
    found = batches(dataset, 5, workers=workers)
    for _ in range(2):  # and again from the start
        images, labels, indices = (torch.cat(part) for part in zip(*found, strict=True))
        assert torch.equal(images, torch.stack([dataset.read(i) for i in range(12)]))
        assert labels.tolist() == dataset.labels
        assert indices.tolist() == list(range(12))
    assert len(found) == 3
    assert found.skipped == 0


def many(folder: Path, count: int) -> Path:
    """`count` more images, as links to one."""
    for i in range(count):
        (folder / "ant" / f"more{i}.png").symlink_to(folder / "bee" / "0.png")
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_left_out_and_counted(folder: Path, workers: int) -> None:
    many(folder, 188)  # 200 in all
    (folder / "bee" / "1.png").write_bytes(b"this is no image")
    data = (folder / "cat9" / "2.png").read_bytes()
    (folder / "cat9" / "2.png").write_bytes(data[: len(data) // 2])
    dataset = open_images(folder, CONFIG)
    loader = batches(dataset, 16, workers=workers)
    for _ in range(2):
        indices = torch.cat([indices for _, _, indices in loader]).tolist()
        assert loader.skipped == 2
        lost = [dataset.path(i) for i in range(200) if i not in indices]
        assert lost == ["bee/1.png", "cat9/2.png"]
        assert len(indices) == 198


def test_labels_stay_with_their_images_when_some_are_left_out(folder: Path) -> None:
    many(folder, 100)
    (folder / "bee" / "1.png").write_bytes(b"")
    dataset = open_images(folder, CONFIG)
    for images, labels, indices in batches(dataset, 7):
        for image, label, index in zip(images, labels, indices, strict=True):
            assert torch.equal(image, dataset.read(int(index)))
            assert int(label) == dataset.labels[int(index)]


def test_more_than_one_percent_unreadable_is_an_error_that_lists_them(folder: Path) -> None:
    many(folder, 87)  # 99 in all: one is more than 1 %
    (folder / "bee" / "1.png").write_bytes(b"this is no image")
    with pytest.raises(InputError, match=r"1 of 99\): bee/1\.png \(not an image\)") as caught:
        list(batches(open_images(folder, CONFIG), 8))
    assert caught.value.exit_code == 4
    (folder / "ant" / "one more.png").symlink_to(folder / "bee" / "0.png")
    loader = batches(open_images(folder, CONFIG), 8)  # 100: exactly 1 %
    assert sum(len(labels) for _, labels, _ in loader) == 99


def test_a_dangling_link_counts_as_unreadable(folder: Path) -> None:
    (folder / "bee" / "lost.png").symlink_to(folder / "absent.png")
    with pytest.raises(InputError, match=r"lost\.png \(.*No such file"):
        list(batches(open_images(folder, CONFIG), 8))


def test_stopping_early_leaves_no_threads(folder: Path) -> None:
    before = threading.active_count()
    iterator = iter(batches(open_images(folder, CONFIG), 2, workers=3))
    next(iterator)
    iterator.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert threading.active_count() == before


def test_impossible_sizes_are_refused(folder: Path) -> None:
    dataset = open_images(folder, CONFIG)
    with pytest.raises(UsageError, match="batch size"):
        batches(dataset, 0)
    with pytest.raises(UsageError, match="workers"):
        batches(dataset, 1, workers=-1)
