"""The pixel kernel: normalised images to 8-bit codes of patches, in one launch.

torch takes six kernels for it, of which each reads and writes the whole batch: six of the 97 of a DeiT, and 375 MB of
traffic at batch 64 in place of 48 MB.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvit_kernels import arithmetic
from qvit_kernels.launching import Launch

# pyright: reportArgumentType=false

# Values of a program: 8 a thread of 4 warps, two 16-byte loads of fp32.
_VALUES = 1024


@triton.jit(do_not_specialize=["count"])  # one binary for all batches: only a mask reads it
def quantize_pixels_kernel(
    images, gain, offset, codes,
    image_stride, channel_stride, row_stride, column_stride,
    # patches in all, of an image, and in a row of one
    count, PATCHES, COLUMNS,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """ROWS patches of one channel: codes int8 [count, CHANNELS * HEIGHT * WIDTH]. SPAN: a power of two of at least
    HEIGHT * WIDTH values.
    """
    VALUES: tl.constexpr = HEIGHT * WIDTH
    channel = tl.program_id(1)
    patch = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    value = tl.arange(0, SPAN)
    inside = (patch < count)[:, None] & (value < VALUES)[None, :]
    image = (patch // PATCHES).to(tl.int64)
    place = patch % PATCHES
    corner = place // COLUMNS * HEIGHT * row_stride + place % COLUMNS * WIDTH * column_stride
    start = image * image_stride + channel.to(tl.int64) * channel_stride + corner
    within = value // WIDTH * row_stride + value % WIDTH * column_stride
    x = tl.load(images + start[:, None] + within[None, :], mask=inside, other=0.0).to(tl.float32)
    x = x * tl.load(gain + channel) + tl.load(offset + channel)
    q = arithmetic.codes_of(x, 1.0, -128.0, 127.0, True)
    at = patch.to(tl.int64)[:, None] * (CHANNELS * VALUES) + channel * VALUES + value[None, :]
    tl.store(codes + at, q, mask=inside)


def supports(images: Tensor, height: int, width: int) -> str | None:
    """Why the kernel cannot cut these images; None if it can."""
    if height * width > _VALUES:
        return f"patches of {height}x{width} values are larger than {_VALUES}"
    return None


def plan(
    images: Tensor, gain: Tensor, offset: Tensor, height: int, width: int
) -> tuple[Launch, Tensor]:
    """The launch of `composed.quantize_pixels` and what it fills: int8 [B, P, C * height * width].

    images: fp32, bf16 or fp16 [B, C, H, W], strided as they may be.
    """
    batch, channels, rows, columns = images.shape
    across = columns // width
    patches = rows // height * across
    codes = torch.empty(
        (batch, patches, channels * height * width), dtype=torch.int8, device=images.device
    )
    span = 1 << (height * width - 1).bit_length()
    strides = dict(zip(_STRIDES, images.stride(), strict=True))
    arguments = strides | {
        "images": images, "gain": gain.contiguous(), "offset": offset.contiguous(), "codes": codes,
        "count": batch * patches, "PATCHES": patches, "COLUMNS": across,
        "CHANNELS": channels, "HEIGHT": height, "WIDTH": width,
        "ROWS": _VALUES // span, "SPAN": span,
    }  # fmt: skip
    grid = (math.ceil(batch * patches * span / _VALUES), channels)
    return Launch(quantize_pixels_kernel, grid, arguments), codes


_STRIDES = ("image_stride", "channel_stride", "row_stride", "column_stride")
