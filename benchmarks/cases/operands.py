"""Random operands of the ops on a device: codes that use their whole range, scales and weights of a model's size."""

import torch
from torch import Tensor

from qvit_kernels.packing import pack_int4
from qvit_kernels.reference import (
    BlockTransform,
    QKNorm,
    Quantized,
    Weight,
    code_range,
    largest_multiplier,
)
from qvit_kernels.storage import empty_values


class Operands:
    """Makes operands on a device, from a seed; None: from torch's own state.

    draw: Where the numbers are drawn; "cpu" gives the same ones to every device, the device itself is faster.
    """

    def __init__(self, device: torch.device, seed: int | None = 0, draw: str | None = None) -> None:
        self.device = device
        self._draw = torch.device(draw or device)
        self._generator = None
        if seed is not None:
            self._generator = torch.Generator(self._draw).manual_seed(seed)

    def floats(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normally distributed."""
        drawn = torch.randn(shape, device=self._draw, generator=self._generator)
        return drawn.to(self.device, dtype)

    def scales(self, *shape: int) -> Tensor:
        """fp32 in 0.01..0.03."""
        return self._uniform(shape) * 0.02 + 0.01

    def codes(self, *shape: int, bits: int = 8) -> Tensor:
        """int8, every code of `bits` alike often."""
        low, high = code_range(bits)
        return self._integers(low, high, shape)

    def rows(self, *shape: int, bits: int = 8, groups: int = 1, packed: bool = False) -> Quantized:
        """Activations [..., K] with scales [..., groups]."""
        codes = self.codes(*shape, bits=bits)
        return Quantized(pack_int4(codes) if packed else codes, self.scales(*shape[:-1], groups))

    def weight(
        self, n: int, k: int, *, bits: int = 8, group: int = 0, packed: bool | None = None
    ) -> Weight:
        """int8 [n, k], or `packed` (None: of 4 bits), with multipliers of either sign for a `group` of columns."""
        packed = bits == 4 if packed is None else packed
        codes = self.codes(n, k, bits=bits)
        multiplier = None
        if group:
            most = largest_multiplier(bits)
            sizes = self._integers(1, most, (n, k // group))
            multiplier = sizes * (2 * self._integers(0, 1, (n, k // group)) - 1)
        scale = self.scales(n) * 0.1
        return Weight(pack_int4(codes) if packed else codes, scale, multiplier)

    def transform(self, width: int, block: int) -> BlockTransform | None:
        """Random signs; None for a block of 0."""
        if not block:
            return None
        return BlockTransform(2 * self._integers(0, 1, (width,)).float() - 1, block)

    def heads(
        self, batch: int, heads: int, tokens: int, width: int, bits: int = 8
    ) -> tuple[Quantized, Quantized, Quantized]:
        """Q, K and V as `linear_qkv` leaves them: the padding of V's memory holds -1."""
        shape = (batch, heads, tokens, width)
        q, k, v = (self.rows(*shape, bits=bits) for _ in range(3))
        values = empty_values(shape, self.device)
        stored = values._base
        if stored is not None:
            stored.fill_(-1)
        return q, k, Quantized(values.copy_(v.codes), v.scale)

    def norm(self, width: int) -> QKNorm:
        """Parameters of QK-norm."""
        a, b, c, d = (self.floats(width) for _ in range(4))
        return QKNorm(a * 0.1 + 1, b, c * 0.1 + 1, d, 1e-6)

    def mask(self, *shape: int) -> Tensor:
        """bool, True for three in four."""
        return self._uniform(shape) < 0.75

    def _uniform(self, shape: tuple[int, ...]) -> Tensor:
        drawn = torch.rand(shape, device=self._draw, generator=self._generator)
        return drawn.to(self.device)

    def _integers(self, low: int, high: int, shape: tuple[int, ...]) -> Tensor:
        options = {"device": self._draw, "generator": self._generator, "dtype": torch.int8}
        return torch.randint(low, high + 1, shape, **options).to(self.device)
