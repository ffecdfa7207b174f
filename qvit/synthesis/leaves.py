"""Dead leaves: pictures of a random process that nobody took, with the edges, scales and colours of those that were.

Overlapping shapes of all sizes, each with its own colour and grain (Lee, Mumford & Huang, IJCV 2001: sizes by r^-3 make
the picture look alike at every scale, as photographs do). They teach a network's early layers nearly what photographs
teach them (Baradad et al., NeurIPS 2021), which is what the rounding of weights needs; they cost a tenth of a second,
and know nothing of the model.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from qvit.models.networks import NetworkConfig
from qvit.recipe import Synthesis
from qvit.synthesis.noise import pixel_bounds
from qvit.synthesis.objective import Batch
from qvit.synthesis.seeds import SYNTHESIS, generator_for

# float32 throughout, [height, width, channels]; numpy's stubs believe that a Python float makes it float64
Picture = NDArray[np.floating]

# Directions of colour (luminance, red to blue, green to both), and how much of the last two a picture may have. In
# photographs luminance varies several times as much as either.
_DIRECTIONS = np.array([[0.58, 0.58, 0.58], [0.7, 0.0, -0.7], [0.4, -0.8, 0.4]], np.float32)
_CHROMA = (0.1, 0.5), (0.05, 0.25)
_GRAINS = 4  # fields of noise that the leaves of a picture share, each rolled anew for every leaf
_ROUGHNESS = 0.5, 1.8  # exponents of their spectra; photographs have about 1
_CONTRASTS = 0.02, 0.1, 0.25, 0.4  # of the grain in a leaf, against 1.3 between leaves
_SOFT = 0.5, 0.5, 1.0, 3.0  # pixels over which an outline fades, for a picture of 224
_LEAVES = 8, 400
_SMALLEST, _LARGEST = 0.02, (0.15, 0.6)  # radii in sides; the largest is drawn for each picture
_SHADED = 0.3  # share of the leaves that light falls on from a side


def draw_leaves(batch: Batch) -> Tensor:
    """A picture an image in the model's normalised space, fp32 [B, C, H, W], each value one that a pixel can have."""
    height, width = batch.config.image_size
    seeds = torch.randint(2**62, (batch.count,), generator=batch.generator).tolist()
    pictures = np.stack([_draw(np.random.default_rng(seed), height, width) for seed in seeds])
    black, white = pixel_bounds(batch.config, torch.device("cpu"))
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    channels = batch.config.in_chans
    if channels != pixels.shape[1]:
        pixels = pixels.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    return black + (white - black) * pixels


def _draw(rng: Generator, height: int, width: int) -> Picture:
    """A picture with values from 0 to 1, [height, width, 3]."""
    paint = _Paint(rng, height, width)
    picture = paint.box(slice(0, height), slice(0, width))
    side = float(max(height, width))
    for radius in _radii(rng, side):
        _lay(rng, picture, paint, radius, side)
    return _exposed(rng, picture)


class _Paint:
    """The colours of one picture, and fields of noise that its leaves are cut from."""

    def __init__(self, rng: Generator, height: int, width: int) -> None:
        strengths = [1.0, *(rng.uniform(*ends) for ends in _CHROMA)]
        self.colours = _DIRECTIONS * np.asarray(strengths, np.float32)[:, None]
        self._grains = [_grain(rng, height, width) for _ in range(_GRAINS)]
        self._rng = rng

    def box(self, rows: slice, columns: slice) -> Picture:
        """A new colour with grain, for this part of the picture."""
        rng = self._rng
        grain = self._grains[rng.integers(_GRAINS)]
        down, across = rng.integers(grain.shape[0]), rng.integers(grain.shape[1])
        cut = np.ix_(
            (np.arange(rows.start, rows.stop) + down) % grain.shape[0],
            (np.arange(columns.start, columns.stop) + across) % grain.shape[1],
        )
        contrast = np.float32(rng.choice(_CONTRASTS))
        return self.colour() + grain[cut] @ (self.colours * contrast)

    def colour(self) -> Picture:
        """One of the picture's colours, [3]."""
        return 0.65 * (self._rng.normal(size=3).astype(np.float32) @ self.colours)


def _grain(rng: Generator, height: int, width: int) -> Picture:
    """Three fields of noise whose amplitudes fall with a power of the frequency, faster in one direction; std 1."""
    turn, stretch = rng.uniform(0, np.pi), np.exp(rng.normal(0, 0.5))
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    along = (across * np.cos(turn) + down * np.sin(turn)) * stretch
    athwart = (down * np.cos(turn) - across * np.sin(turn)) / stretch
    frequency = np.hypot(along, athwart)
    frequency[0, 0] = np.inf
    amplitude = frequency ** -rng.uniform(*_ROUGHNESS)
    shape = (3, *amplitude.shape)
    spectrum = amplitude * (rng.normal(size=shape) + 1j * rng.normal(size=shape))
    fields = np.fft.irfft2(spectrum, s=(height, width)).transpose(1, 2, 0)
    return (fields / fields.std((0, 1))).astype(np.float32)


def _radii(rng: Generator, side: float) -> NDArray[np.floating]:
    """Of all leaves, in pixels, with a density of r^-3."""
    least, most = _SMALLEST * side, rng.uniform(*_LARGEST) * side
    count = int(np.exp(rng.uniform(*np.log(_LEAVES))))
    return (least**-2 + (most**-2 - least**-2) * rng.random(count)) ** -0.5


def _lay(rng: Generator, picture: Picture, paint: _Paint, radius: float, side: float) -> None:
    """One more leaf over the picture, or beside it."""
    height, width = picture.shape[:2]
    x, y = rng.uniform(-0.1, 1.1) * width, rng.uniform(-0.1, 1.1) * height
    rows, columns = _span(y, 1.5 * radius, height), _span(x, 1.5 * radius, width)
    turn, squeeze = rng.uniform(0, 2 * np.pi), np.exp(rng.normal(0, 0.5))
    outline = _OUTLINES[rng.integers(len(_OUTLINES))]
    soft = rng.choice(_SOFT) * side / 224 / radius
    if rows.stop <= rows.start or columns.stop <= columns.start:
        return
    down = (np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - y) / radius
    across = (np.arange(columns.start, columns.stop, dtype=np.float32)[None] - x) / radius
    u = (across * np.cos(turn) + down * np.sin(turn)) * squeeze
    v = (down * np.cos(turn) - across * np.sin(turn)) / squeeze
    cover = np.clip((1 - outline(rng, u, v)) / soft + 0.5, 0, 1).astype(np.float32)[..., None]
    leaf = paint.box(rows, columns)
    if rng.random() < _SHADED:
        light = (u * rng.normal() + v * rng.normal()).astype(np.float32)[..., None]
        leaf = leaf + 0.15 * light * paint.colours[0]
    picture[rows, columns] += cover * (leaf - picture[rows, columns])


def _span(centre: float, reach: float, length: int) -> slice:
    """The pixels of a row or column within reach of a place."""
    return slice(max(0, int(centre - reach)), min(length, int(centre + reach) + 1))


def _ellipse(rng: Generator, u: Picture, v: Picture) -> Picture:
    return np.hypot(u, v)


def _box(rng: Generator, u: Picture, v: Picture) -> Picture:
    return 1.1 * np.maximum(np.abs(u), np.abs(v))


def _polygon(rng: Generator, u: Picture, v: Picture) -> Picture:
    corner = 2 * np.pi / rng.integers(3, 8)
    angle = np.arctan2(v, u) % corner - corner / 2
    return 1.2 * np.hypot(u, v) * np.cos(angle) / np.cos(corner / 2)


def _blob(rng: Generator, u: Picture, v: Picture) -> Picture:
    angle = np.arctan2(v, u)
    waves = 0.3 * np.sin(rng.integers(2, 7) * angle + rng.uniform(0, 2 * np.pi))
    waves += 0.15 * np.sin(rng.integers(3, 12) * angle + rng.uniform(0, 2 * np.pi))
    return np.hypot(u, v) * (1 + waves)


# Each maps coordinates in radii to a number that is 1 on the outline and less inside.
_OUTLINES: tuple[Callable[[Generator, Picture, Picture], Picture], ...] = (
    _ellipse, _box, _polygon, _blob,
)  # fmt: skip


def _exposed(rng: Generator, picture: Picture) -> Picture:
    """Brightness and contrast of a photograph, clipped to what it can hold: from 0 to 1."""
    picture = picture - rng.uniform(0, 1) * picture.mean((0, 1))
    picture = picture * (rng.uniform(0.15, 0.3) / (picture.std() + 1e-6)) + rng.normal(0.475, 0.1)
    return np.clip(picture, 0, 1).astype(np.float32)


def draw_pictures(config: NetworkConfig, count: int, generator: torch.Generator) -> Tensor:
    """Pictures for a model's inputs that belong to no run of `synthesize`, fp32 [count, C, H, W], normalised."""
    settings = Synthesis.preset("leaves", images=count)
    return draw_leaves(Batch(count, config, settings, generator))


def redraw_pictures(config: NetworkConfig, count: int, seed: int) -> Tensor:
    """The first pictures of the run of `synthesize` that drew leaves under this seed, fp32 [count, C, H, W], at most
    those of its first batch: a picture depends on its place in the batch, and not on how many come after it.
    """
    return draw_pictures(config, count, generator_for(seed, SYNTHESIS, 0))
