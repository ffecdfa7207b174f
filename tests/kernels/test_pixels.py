"""The pixel kernel against the reference: equal, bit by bit."""

import pytest
import torch

from benchmarks.checks.guarded_memory import surround
from qvit_kernels import composed, pixels
from tests.kernels.products import run

GAIN, OFFSET = torch.tensor([58.4, 57.1, 57.4]), torch.tensor([-4.3, -11.7, -24.5])


def check(images, patch):
    assert pixels.supports(images, *patch) is None
    guarded = surround(images, 0x7F) if images.is_contiguous() and images.numel() else images
    found = run(pixels.plan(guarded, GAIN, OFFSET, *patch))
    assert torch.equal(found, composed.quantize_pixels(images, GAIN, OFFSET, *patch))


@pytest.mark.parametrize("patch", [(16, 16), (8, 8), (14, 14), (32, 32), (4, 6), (1, 1)])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_patches(batch, patch):
    check(torch.randn(batch, 3, 2 * patch[0], 3 * patch[1]) * 2, patch)


@pytest.mark.parametrize("size", [(35, 50), (47, 47), (16, 31)])
def test_pixels_beyond_whole_patches_are_left_out(size):
    check(torch.randn(2, 3, *size), (16, 16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_first(dtype):
    check(torch.randn(2, 3, 16, 32).to(dtype), (16, 16))


def test_views():
    """Channels last, turned, every other row and column, one image for all."""
    images = torch.randn(2, 3, 64, 64)
    for view in (
        images.contiguous(memory_format=torch.channels_last),
        images.mT,
        images[..., ::2, ::2],
        images[:1].expand(4, -1, -1, -1),
        images.flip(1)[:, :, 1:33, 3:51],
    ):
        check(view, (16, 16))


def test_ties_and_saturation():
    """Values that land on .5 round to even; what leaves the range, infinities too, is clamped."""
    steps = [0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 1e9, -128.5, -1e9, torch.inf, -torch.inf]
    images = torch.tensor(steps).repeat(3 * 16 * 16 // 12).view(1, 3, 16, 16)
    one, zero = torch.ones(3), torch.zeros(3)
    found = run(pixels.plan(images, one, zero, 16, 16))
    assert found[0, 0, :12].tolist() == [0, 2, 2, 0, -2, 126, 127, 127, -128, -128, 127, -128]
    assert torch.equal(found, composed.quantize_pixels(images, one, zero, 16, 16))


def test_the_only_kernel_of_one_channel():
    images = torch.randn(2, 1, 32, 32)
    found = run(pixels.plan(images, GAIN[:1], OFFSET[:1], 16, 16))
    assert torch.equal(found, composed.quantize_pixels(images, GAIN[:1], OFFSET[:1], 16, 16))


def test_patches_larger_than_a_program_have_no_kernel():
    assert "larger than 1024" in pixels.supports(torch.empty(1, 3, 64, 64), 32, 33)
